"""What a gateway keeps of the projection: for a second, shared where it is the same, parsed once."""

import asyncio
from dataclasses import replace

from inference.gateway import projection
from inference.gateway.core.quote import Sheets
from inference.gateway.projection import Projection
from inference.gateway.redis_client import Redis
from kernel import wire
from kernel.pricing import Rate
from kernel.problems import UNAVAILABLE
from tests.inference.gateway.world import CURRENCY, REGION, Tenant, World


async def connected(world: World) -> Redis:
    redis = Redis(world.url)
    redis.start()
    for _ in range(500):
        if redis.run_id is None:
            await asyncio.sleep(0.01)
    assert redis.run_id is not None
    return redis


def test_what_did_not_change_is_read_together_and_parsed_once(world: World, tenant: Tenant) -> None:
    route = world.endpoint(tenant, "127.0.0.1:1")
    deployment = route.deployments[0].deployment_id

    async def look() -> None:
        redis = await connected(world)
        now = [0.0]
        seen = Projection(redis, clock=lambda: now[0])
        first, pods = await seen.route(route.endpoint_id), await seen.pods(deployment)
        assert (first, len(pods)) == (route, 1)
        now[0] = projection.FRESH_S + 0.1
        assert await seen.route(route.endpoint_id) is first
        before = world.redis.info("commandstats")["cmdstat_hvals"]["calls"]
        assert await seen.pods(deployment) is pods
        assert world.redis.info("commandstats")["cmdstat_hvals"]["calls"] == before
        now[0] += projection.FRESH_S + 0.1
        moved = replace(route, generation=2)
        world.redis.set(wire.route(route.endpoint_id), wire.dumps(moved))
        assert await seen.route(route.endpoint_id) == moved
        now[0] += projection.FRESH_S + 0.1
        world.redis.delete(wire.route(route.endpoint_id))
        assert await seen.route(route.endpoint_id) is None
        await redis.close()

    asyncio.run(look())


def test_in_a_redis_that_was_emptied_nothing_is_called_absent(world: World, tenant: Tenant) -> None:
    route = world.endpoint(tenant, "127.0.0.1:1", shared_as="emptied")

    async def look() -> None:
        redis = await connected(world)
        now = [0.0]
        seen = Projection(redis, clock=lambda: now[0])

        async def ask() -> list[object]:
            now[0] += projection.FRESH_S + 0.1
            looks = (seen.route("ep_absent"), seen.route(route.endpoint_id), seen.shared_endpoint("emptied"))
            return await asyncio.gather(*looks, return_exceptions=True)

        assert await ask() == [None, route, route.endpoint_id]
        epoch = world.redis.get(wire.EPOCH) or b""
        world.redis.delete(wire.EPOCH, wire.route(route.endpoint_id))
        world.redis.hdel(wire.SHARED, "emptied")
        try:
            assert [getattr(answer, "type", None) for answer in await ask()] == [UNAVAILABLE] * 3
        finally:
            world.redis.set(wire.EPOCH, epoch)
        assert await ask() == [None, None, None]
        await redis.close()

    asyncio.run(look())


def test_tenants_without_prices_of_their_own_share_the_public_ones(world: World, tenant: Tenant) -> None:
    sku = f"tiny:{tenant.record.tenant_id}"
    public = world.price(sku)
    own = world.price(sku, {"in_hit": Rate(1), "in_miss": Rate(1), "out": Rate(1)}, owner=tenant.record.tenant_id)

    async def look() -> None:
        redis = await connected(world)
        seen = Projection(redis)

        async def of(tenant_id: str, of_sku: str = sku) -> Sheets:
            return await seen.sheets(tenant_id=tenant_id, sku=of_sku, region=REGION, currency=CURRENCY)

        mine, others = await of(tenant.record.tenant_id), await of("another")
        assert (mine.own, mine.public, others.own, others.public) == ((own,), (public,), (), (public,))
        assert await of("a third") is others
        nothing = await of("another", "unheard of")
        assert (nothing.own, nothing.public) == ((), ())
        await redis.close()

    asyncio.run(look())
