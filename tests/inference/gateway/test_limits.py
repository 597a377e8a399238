"""Tokens per minute and spend caps: taken in full, corrected at the end, each refusal with its own cause."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from inference.gateway.core import limits
from inference.gateway.core.request import Size
from inference.gateway.core.usage import Counts
from kernel import wire
from kernel.pricing import Rate
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.test_errors import refused
from tests.inference.gateway.test_hangup import read_tokens
from tests.inference.gateway.world import HELLO, SKU, Gateway, Tenant, World, gateway
from tests.services import wait_until

COST = 4 * 10 + 6 * 100 + 5 * 1000
MONTH = datetime.now(UTC).strftime("%Y-%m")


@pytest.fixture(autouse=True)
def early_in_the_minute() -> None:
    """No test sees the next minute's counters."""
    if time.time() % 60 > 50:
        time.sleep(61 - time.time() % 60)


def tokens(world: World, owner: str, what: str) -> int:
    return int(world.redis.get(wire.tpm(owner, what, int(time.time()) // 60)) or 0)


def spent(world: World, whose: str) -> int:
    return int(world.redis.get(wire.spend(whose, MONTH)) or 0)


def test_cached_uncached_and_generated_tokens_are_counted_apart_and_corrected(
    world: World, door: Gateway, engine: Engine
) -> None:
    tenant = world.tenant(tpm_cached=10_000, tpm_uncached=20_000, tpm_generated=30_000)
    route = world.endpoint(tenant, engine.address, tpm=50_000)
    key, endpoint = tenant.record.key_id, route.endpoint_id
    engine.plan = Plan(gate=threading.Event())
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(door.chat, tenant, endpoint)
        wait_until(lambda: tenant.concurrent() == 1, "admission")
        bound = tokens(world, key, "cached")
        assert bound > 512
        assert tokens(world, key, "uncached") == bound
        assert tokens(world, key, "generated") == 5
        assert tokens(world, endpoint, "reserved") == bound + 5
        engine.plan.gate.set()  # type: ignore[union-attr]  # set above
        answer = call.result()
    policy, state = answer.headers["ratelimit-policy"], answer.headers["ratelimit"]
    for name, most, taken in (
        ("cached", 10_000, bound),
        ("uncached", 20_000, bound),
        ("generated", 30_000, 5),
        ("reserved", 50_000, bound + 5),
    ):
        assert f'"{name}";q={most};w=60' in policy
        left = re.search(rf'"{name}";r=(\d+);t=(\d+)', state)
        assert left is not None
        assert int(left[1]) == most - taken
        assert 0 < int(left[2]) <= 60
    wait_until(lambda: tenant.concurrent() == 0, "settlement")
    assert tokens(world, key, "cached") == 4
    assert tokens(world, key, "uncached") == 6
    assert tokens(world, key, "generated") == 5
    assert tokens(world, endpoint, "reserved") == 15


def test_an_abort_leaves_in_the_counters_what_was_delivered(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant(tpm_generated=30_000, spend_cap_pico=10**12)
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=4000, interval_s=0.02)
    read_tokens(door, tenant, route.endpoint_id, 10)
    (event,) = door.events_of(tenant)
    wait_until(lambda: tenant.concurrent() == 0, "settlement")
    assert tokens(world, tenant.record.key_id, "generated") == event.counts["out"] > 0
    assert spent(world, tenant.record.key_id) == event.quoted_pico > 0


def test_a_refused_request_leaves_every_counter_as_it_was(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant(free=1, tpm_cached=10_000, tpm_generated=3, spend_cap_pico=10**12)
    route = world.endpoint(tenant, engine.address)
    key = tenant.record.key_id
    refused(door.chat(tenant, route.endpoint_id), 429, "token_limit_exceeded", "lower max_tokens")
    assert [tokens(world, key, what) for what in ("cached", "generated")] == [0, 0]
    refused(door.chat(tenant, route.endpoint_id, max_tokens=3), 402, "insufficient_balance")
    assert [tokens(world, key, what) for what in ("cached", "generated")] == [0, 0]
    assert spent(world, key) == 0
    assert (tenant.free(), tenant.concurrent()) == (1, 0)
    for name in world.redis.keys(f"v1:*{key}*"):
        assert name == wire.key(tenant.record.public_id).encode() or world.redis.ttl(name) > 0


@pytest.mark.parametrize(
    ("of_key", "of_route", "status", "code", "words"),
    [
        ({"tpm_uncached": 700}, {}, 429, "token_limit_exceeded", "uncached input tokens a minute"),
        ({"tpm_cached": 700}, {}, 429, "token_limit_exceeded", "cached input tokens a minute"),
        ({"tpm_generated": 7}, {}, 429, "token_limit_exceeded", "generated tokens a minute"),
        ({}, {"tpm": 700}, 429, "reservation_exceeded", "endpoint's reservation"),
        ({"spend_cap_pico": 75_000}, {}, 402, "spend_cap_reached", "you set for this key"),
        ({"user_cap_pico": 75_000}, {}, 402, "spend_cap_reached", "each end user"),
        ({"rpm": 1}, {}, 429, "rate_limit_exceeded", "1 requests a minute"),
        ({"concurrency": 1}, {}, 429, "concurrency_limit_exceeded", "1 requests at a time"),
        ({"free": 75_000}, {}, 402, "insufficient_balance", "add credit"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_each_cause_has_its_own_code_and_sentence(
    world: World,
    door: Gateway,
    engine: Engine,
    path: str,
    of_key: dict[str, Any],
    of_route: dict[str, Any],
    status: int,
    code: str,
    words: str,
) -> None:
    tenant = world.tenant(**of_key)
    route = world.endpoint(tenant, engine.address, **of_route)
    engine.plan = Plan(gate=threading.Event())
    user = {"metadata": {"user_id": "ann"}} if path == "/v1/messages" else {"user": "ann"}

    def ask() -> httpx2.Response:
        body = {**HELLO, **user, "model": route.endpoint_id}
        return httpx2.post(door.url + path, headers=tenant.headers, json=body, timeout=30)

    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(ask)
        wait_until(lambda: tenant.concurrent() == 1, "admission")
        second = ask()
        engine.plan.gate.set()  # type: ignore[union-attr]  # set above
        first = call.result()
    assert first.status_code == 200
    for name in ("ratelimit-policy", "ratelimit", "x-request-id", "x-moorage-endpoint"):
        assert first.headers[name]
    refused(second, status, code, words)
    assert ("type" in second.json()) == (path == "/v1/messages")
    if code not in ("insufficient_balance", "concurrency_limit_exceeded"):  # neither has a window
        assert re.fullmatch(r'"[a-z-]+";q=\d+;(w=60|qu="micro-usd")', second.headers["ratelimit-policy"])
        assert re.fullmatch(r'"[a-z-]+";r=\d+;t=\d+', second.headers["ratelimit"])
    assert ("retry-after" in second.headers) == (status == 429)
    assert len(engine.asked) == 1


RESERVED_SKU = "tiny:reserved"


def reserve(world: World, tenant: Tenant, engine: Engine, tpm: int) -> wire.RouteRecord:
    """A reservation: its own tokens are paid for by the day, those beyond it like the shared endpoint's."""
    world.price(RESERVED_SKU, {"in_hit": Rate(0), "in_miss": Rate(0), "out": Rate(0)})
    rides = wire.DeploymentRoute(str(uuid4()), 100, RESERVED_SKU, beyond_sku=SKU)
    return world.endpoint(tenant, engine.address, tpm=tpm, deployments=[rides])


def test_what_is_beyond_a_reservation_falls_to_money_and_its_event_says_so(
    world: World, door: Gateway, engine: Engine
) -> None:
    tenant = world.tenant()
    route = reserve(world, tenant, engine, 700)
    before = tenant.free()
    engine.plan = Plan(prompt_tokens=500, cached_tokens=0)
    inside, beyond, again = (door.chat(tenant, route.endpoint_id) for _ in range(3))
    cost = "0.000000055"  # 500 * 100 + 5 * 1000 pico
    assert [answer.json()["usage"]["cost"]["amount"] for answer in (inside, beyond, again)] == ["0", cost, cost]
    assert '"reserved";q=700' in inside.headers["ratelimit-policy"]
    assert "reserved" not in beyond.headers["ratelimit-policy"]
    events = door.events_of(tenant, at_least=3)
    assert [(event.sku, event.quoted_pico) for event in events] == [(RESERVED_SKU, 0), (SKU, 55_000), (SKU, 55_000)]
    assert [event.purse for event in events] == [None, "general", "general"]
    wait_until(lambda: tenant.free() == before - 110_000, "settlement")
    assert tokens(world, route.endpoint_id, "reserved") == 505  # of the first alone


def test_beyond_a_reservation_money_that_is_short_or_a_cap_says_what_stood_in_the_way(
    world: World, door: Gateway, engine: Engine
) -> None:
    tenant = world.tenant(free=0)
    route = reserve(world, tenant, engine, 700)
    engine.plan = Plan(prompt_tokens=500, cached_tokens=0)
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    answer = door.chat(tenant, route.endpoint_id)
    refused(answer, 429, "reservation_exceeded", "has 195 left")
    assert 0 < int(answer.headers["retry-after"]) <= 60
    tenant.lend(10**15)
    tenant.change(endpoint_caps_pico={route.endpoint_id: 1})
    refused(door.chat(tenant, route.endpoint_id), 402, "spend_cap_reached", "this endpoint")
    tenant.change(endpoint_caps_pico={})
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    assert tokens(world, route.endpoint_id, "reserved") == 505


def test_a_cap_holds_per_end_user_and_per_endpoint(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant()
    capped, free = (world.endpoint(tenant, engine.address) for _ in range(2))
    tenant.change(user_cap_pico=75_000, endpoint_caps_pico={capped.endpoint_id: 10**6})
    engine.plan = Plan(prompt_tokens=500, cached_tokens=0)
    assert door.chat(tenant, free.endpoint_id, user="ann@example.org").status_code == 200
    wait_until(lambda: tenant.concurrent() == 0, "settlement")
    refused(door.chat(tenant, free.endpoint_id, user="ann@example.org"), 402, "spend_cap_reached", "end user")
    assert door.chat(tenant, free.endpoint_id, user="bob").status_code == 200
    assert door.chat(tenant, free.endpoint_id).status_code == 200
    assert not [name for name in world.redis.keys("v1:spend:*") if b"ann" in name]
    ann, bob, nobody = (event.end_user for event in door.events_of(tenant, at_least=3))
    assert ("ann" in ann, ann == bob, nobody) == (False, False, "")
    assert spent(world, wire.spend_of_user(tenant.record.key_id, ann)) == 55_000
    answers = [door.chat(tenant, capped.endpoint_id, max_tokens=400) for _ in range(12)]
    wait_until(lambda: tenant.concurrent() == 0, "settlement")
    costs = [event.quoted_pico for event in door.events_of(tenant, at_least=3) if event.endpoint_id != free.endpoint_id]
    assert 0 < sum(answer.status_code == 200 for answer in answers) < 12
    assert spent(world, wire.spend_at_endpoint(tenant.record.tenant_id, capped.endpoint_id)) == sum(costs) <= 10**6


def test_a_cap_beyond_a_doubles_precision_is_exact(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant()
    route = world.endpoint(tenant, engine.address)
    name = wire.spend(tenant.record.key_id, MONTH)
    cap = 2**60 + 1
    tenant.change(spend_cap_pico=cap)
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    (event,) = door.events_of(tenant)
    wait_until(lambda: tenant.concurrent() == 0, "settlement")
    for room, status in ((event.reserved_pico, 200), (event.reserved_pico - 1, 402)):
        world.redis.set(name, cap - room)
        assert door.chat(tenant, route.endpoint_id).status_code == status
        wait_until(lambda: tenant.concurrent() == 0, "settlement")


def test_what_a_gateway_that_died_had_taken_from_a_cap_comes_back(world: World, engine: Engine, tmp_path: Any) -> None:
    tenant = world.tenant(spend_cap_pico=10**12, user_cap_pico=10**12)
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(wait_s=30)
    with gateway(world, tmp_path) as door:
        with ThreadPoolExecutor(1) as caller:
            call = caller.submit(door.chat, tenant, route.endpoint_id, user="ann")
            wait_until(lambda: spent(world, tenant.record.key_id) > 0, "admission")
            wait_until(lambda: len(engine.asked) > 0, "the engine's turn")
            door.kill()
            assert call.exception() is not None
        door.start()
        wait_until(lambda: spent(world, tenant.record.key_id) == 0, "the cap's correction")
        (event,) = door.events_of(tenant)
        assert spent(world, wire.spend_of_user(tenant.record.key_id, event.end_user)) == 0


def record(**changes: Any) -> wire.KeyRecord:
    plain = wire.KeyRecord("k", "p", "t", "", 1, "USD", ["general"], 1, 1)
    return replace(plain, **changes)


def at(**changes: Any) -> wire.RouteRecord:
    return replace(wire.RouteRecord("ep_1", "t", False, "m", "s", "r", 10, 1, True, 1), **changes)


def test_a_request_without_limits_meets_none() -> None:
    assert not limits.any_of(record(), at())
    met = limits.limits(record(), at(), size=Size(10, 5), answers=1, amount_pico=9, user="", now_s=0.0)
    assert met == []


def test_a_month_ends_where_the_next_begins() -> None:
    for text, until in (("2026-11-30T23:59:59+00:00", "2026-12-01"), ("2026-12-31T12:00:00+00:00", "2027-01-01")):
        now_s = datetime.fromisoformat(text).timestamp()
        (met,) = limits.limits(
            record(spend_cap_pico=1), at(), size=Size(10, 5), answers=1, amount_pico=9, user="", now_s=now_s
        )
        assert datetime.fromtimestamp(met.until, UTC).date().isoformat() == until
        assert text[:7] in met.counter


def test_a_correction_brings_every_counter_to_what_it_came_to() -> None:
    key = record(tpm_cached=99, tpm_uncached=99, tpm_generated=99, spend_cap_pico=99)
    met = limits.limits(key, at(tpm=99), size=Size(10, 5), answers=2, amount_pico=70, user="", now_s=0.0)
    came_to = [
        limit.taken + by for limit, (_, by) in zip(met, limits.corrections(met, Counts(1, 2, 3), 7), strict=True)
    ]
    assert came_to == [1, 2, 3, 6, 7]
