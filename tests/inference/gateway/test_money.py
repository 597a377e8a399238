"""The float: exactly what the money covers, whoever races; nothing is kept that was not used."""

import selectors
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2
import pytest

from inference.gateway.app import raise_file_limit
from kernel import wire
from kernel.pricing import worst_case
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.world import HELLO, SKU, Gateway, Lender, Tenant, World
from tests.services import wait_until


def price_of_one(world: World, route: wire.RouteRecord) -> int:
    """Worst case of the request that these tests send."""
    body = httpx2.Request("POST", "http://x", json={**HELLO, "model": route.endpoint_id}).content
    return worst_case(world.price(), prompt_tokens=len(body) + 512, max_tokens=5)


@pytest.mark.parametrize("lent", [True, False])
def test_fault_22_money_for_ten_of_a_thousand_at_once_admits_exactly_ten(
    world: World, door: Gateway, engine: Engine, lent: bool
) -> None:
    tenant = world.tenant(free=None)
    route = world.endpoint(tenant, engine.address)
    one = price_of_one(world, route)
    engine.plan = Plan(gate=threading.Event())  # nobody settles while the others try
    if lent:
        tenant.lend(10 * one)
    balance = 0 if lent else 10 * one
    body = httpx2.Request("POST", "http://x", json={**HELLO, "model": route.endpoint_id}).content
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.text}\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    host, port = door.url.removeprefix("http://").split(":")
    raise_file_limit()
    with Lender(world, balance), ExitStack() as held, selectors.DefaultSelector() as answered:
        clients = [held.enter_context(socket.create_connection((host, int(port)))) for _ in range(1000)]
        for client in clients:
            answered.register(client, selectors.EVENT_READ)
            client.sendall(request)
        wait_until(lambda: len(answered.select(0)) == 990, "990 refusals", 60)
        engine.plan.gate.set()  # type: ignore[union-attr]  # set above
        answers = [int(client.recv(12).split()[1]) for client in clients]
    assert answers.count(200) == 10
    assert answers.count(402) + answers.count(503) == 990
    assert 503 not in answers or not lent
    cost = sum(event.quoted_pico for event in door.events_of(tenant, at_least=10))
    assert len(door.events_of(tenant)) == 10
    wait_until(lambda: tenant.free() == 10 * one - cost, "settlement")
    assert tenant.reserved() == 0


def test_a_reservation_names_its_generation_amount_and_expiry(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant()
    route = world.endpoint(tenant, engine.address)
    one = price_of_one(world, route)
    engine.plan = Plan(wait_s=1.0)
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(door.chat, tenant, route.endpoint_id)
        wait_until(lambda: tenant.reserved() == 1, "the reservation")
        ((request_id, text),) = world.redis.hgetall(wire.reservations(tenant.float_name)).items()
        generation, amount, expiry = text.decode().split("|")
        assert (generation, amount) == ("1", str(one))
        seconds, _ = world.redis.time()
        assert 3590 < int(expiry) / 1000 - seconds < 3601
        assert call.result().headers["x-request-id"] == request_id.decode()


def test_a_settlement_of_an_older_generation_gives_nothing_back(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant()
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(wait_s=0.7)
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(door.chat, tenant, route.endpoint_id)
        wait_until(lambda: tenant.reserved() == 1, "the reservation")
        tenant.lend(777, generation=2)
        assert call.result().status_code == 200
    wait_until(lambda: tenant.reserved() == 0, "settlement")
    assert tenant.free() == 777
    (event,) = door.events_of(tenant)
    assert event.generation == 1


def test_a_lender_that_answers_in_time_is_not_noticed(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant(free=None)
    route = world.endpoint(tenant, engine.address)
    with Lender(world, 10**12) as lender:
        assert door.chat(tenant, route.endpoint_id).status_code == 200
        assert lender.balance == 10**12 - price_of_one(world, route)


def test_the_first_purse_that_covers_a_request_pays(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant(purses=["grant", "general"])
    grant = wire.float_key(tenant.record.tenant_id, "grant", "USD")
    route = world.endpoint(tenant, engine.address)
    world.redis.hset(grant, mapping={"gen": 3, "transfer": 1, "free": price_of_one(world, route), "dry": 1})
    before = tenant.free()
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    assert tenant.free() == before
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    events = door.events_of(tenant, at_least=2)
    assert [(event.purse, event.generation) for event in events] == [("grant", 3), ("general", 1)]


def test_scoped_credit_pays_for_what_it_names_alone(world: World, door: Gateway, engine: Engine) -> None:
    other, ours = "model=another=1", f"model={SKU.split(':')[0]}=2"
    tenant = world.tenant(purses=[other, ours, "general"])
    route = world.endpoint(tenant, engine.address)
    for purse in (other, ours):
        name = wire.float_key(tenant.record.tenant_id, purse, "USD")
        world.redis.hset(name, mapping={"gen": 3, "transfer": 1, "free": price_of_one(world, route), "dry": 1})
    for _ in range(2):
        assert door.chat(tenant, route.endpoint_id).status_code == 200
    assert [event.purse for event in door.events_of(tenant, at_least=2)] == [ours, "general"]


def test_amounts_beyond_a_doubles_precision_stay_exact(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant(free=9_000_000_000_000_000_001)
    route = world.endpoint(tenant, engine.address)
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    (event,) = door.events_of(tenant)
    wait_until(lambda: tenant.free() == 9_000_000_000_000_000_001 - event.quoted_pico, "settlement")


def test_what_counts_requests_at_a_time_outlives_every_request_in_it(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(gate=threading.Event())
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(door.chat, tenant, route.endpoint_id) for _ in range(3)]
        wait_until(lambda: tenant.concurrent() == 3, "three at a time")
        name = wire.concurrency(tenant.record.key_id)
        ((_, last_ms),) = world.redis.zrange(name, -1, -1, withscores=True)
        assert world.redis.pttl(name) > last_ms - time.time() * 1000
        engine.plan.gate.set()
        assert [call.result().status_code for call in calls] == [200] * 3
