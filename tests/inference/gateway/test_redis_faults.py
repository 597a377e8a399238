"""Redis emptied, gone, or back as another: streams go on, nothing new is admitted, the journal is whole."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import redis

from controlplane.embedded.redis import Redis
from inference.gateway.admission import SETTLE_RETRY_S
from kernel import wire
from tests.inference.gateway.booked import assert_booked
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.test_errors import refused
from tests.inference.gateway.world import Gateway, Tenant, World, gateway
from tests.services import PASSWORD, free_port, server, wait_until


@dataclass
class Place:
    """A Redis that may go and come back, a gateway on it, and one tenant."""

    server: Redis
    running: ExitStack
    world: World
    door: Gateway
    tenant: Tenant
    route: wire.RouteRecord

    def stop(self) -> None:
        self.running.close()

    def start(self) -> None:
        self.running.enter_context(server(self.server.command(), self.server.is_ready, signal.SIGTERM))


@pytest.fixture
def place(engine: Engine, tmp_path: Path) -> Iterator[Place]:
    with _place(engine, tmp_path) as made:
        yield made


@contextmanager
def _place(engine: Engine, folder: Path) -> Iterator[Place]:
    (folder / "redis").mkdir()
    made = Redis(folder / "redis", free_port(), PASSWORD)
    made.configure()
    with ExitStack() as running:
        running.enter_context(server(made.command(), made.is_ready, signal.SIGTERM))
        client = redis.Redis.from_url(made.url(0))
        world = World(client, made.url(0))
        world.found()
        world.price()
        tenant = world.tenant()
        with gateway(world, folder) as door:
            yield Place(made, running, world, door, tenant, world.endpoint(tenant, engine.address))


def streams(place: Place, callers: ThreadPoolExecutor, count: int) -> list["Future[httpx2.Response]"]:
    """Streams that have begun."""
    calls = [
        callers.submit(place.door.chat, place.tenant, place.route.endpoint_id, stream=True, max_tokens=4000)
        for _ in range(count)
    ]
    wait_until(lambda: place.tenant.concurrent() == count, "admission")
    return calls


def test_fault_7_flushed_in_mid_load_streams_go_on_and_nothing_new_is_admitted(place: Place, engine: Engine) -> None:
    engine.plan = Plan(tokens=100, interval_s=0.02)
    with ThreadPoolExecutor(10) as callers:
        calls = streams(place, callers, 10)
        place.world.redis.flushall()
        refused(place.door.chat(place.tenant, place.route.endpoint_id), 503, "unavailable")
        assert all(call.result().text.endswith("data: [DONE]\n\n") for call in calls)
    events = place.door.events_of(place.tenant, at_least=10)
    assert [event.counts["out"] for event in events] == [100] * 10
    assert place.world.redis.dbsize() == 0  # a late settlement makes no float out of nothing
    place.world.found()
    place.world.price()
    place.world.write_key(place.tenant.record)
    place.tenant.lend(10**12, generation=2)
    place.world.redis.set(wire.route(place.route.endpoint_id), wire.dumps(place.route))
    place.world.pod(place.route, engine.address)
    engine.plan = Plan()
    wait_until(lambda: place.door.chat(place.tenant, place.route.endpoint_id).status_code == 200, "a new generation")
    last = place.door.events_of(place.tenant, at_least=11)[-1]
    assert last.generation == 2
    wait_until(lambda: place.tenant.free() == 10**12 - last.quoted_pico, "settlement")


def test_fault_8_while_redis_is_away_streams_finish_and_are_journalled(
    database: None, place: Place, engine: Engine
) -> None:
    engine.plan = Plan(tokens=100, interval_s=0.02)
    before = place.tenant.free()
    with ThreadPoolExecutor(5) as callers:
        calls = streams(place, callers, 5)
        place.stop()
        answer = place.door.chat(place.tenant, place.route.endpoint_id)
        refused(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert all(call.result().text.endswith("data: [DONE]\n\n") for call in calls)
    events = place.door.events_of(place.tenant, at_least=5)
    assert [event.counts["out"] for event in events] == [100] * 5
    place.start()
    place.world.found()
    cost = sum(event.quoted_pico for event in events)
    wait_until(lambda: place.tenant.free() == before - cost, "settlement of what ended meanwhile")
    assert place.tenant.reserved() == place.tenant.concurrent() == 0
    assert_booked(place.door, place.tenant, 5)


def test_fault_9_a_redis_that_comes_back_as_another_admits_nothing_until_the_lender_knows_it(
    database: None, place: Place, engine: Engine
) -> None:
    assert place.door.chat(place.tenant, place.route.endpoint_id).status_code == 200
    place.stop()
    place.start()
    wait_until(lambda: place.door.boots()["run_id"] is not None, "the connection")
    until = time.monotonic() + 1
    while time.monotonic() < until:
        refused(place.door.chat(place.tenant, place.route.endpoint_id), 503, "unavailable")
    place.world.found()
    wait_until(lambda: place.door.chat(place.tenant, place.route.endpoint_id).status_code == 200, "admission")
    place.door.events_of(place.tenant, at_least=2)
    assert_booked(place.door, place.tenant, 2)


def test_what_ends_while_redis_refuses_to_write_is_settled_once_it_writes_again(place: Place, engine: Engine) -> None:
    engine.plan = Plan(tokens=20, interval_s=0.02)
    before = place.tenant.free()
    with ThreadPoolExecutor(3) as callers:
        calls = streams(place, callers, 3)
        place.world.redis.replicaof("127.0.0.1", 1)
        assert all(call.result().text.endswith("data: [DONE]\n\n") for call in calls)
    events = place.door.events_of(place.tenant, at_least=3)
    time.sleep(SETTLE_RETRY_S)  # one more try is refused
    assert place.tenant.reserved() == 3
    place.world.redis.replicaof("NO", "ONE")
    cost = sum(event.quoted_pico for event in events)
    wait_until(lambda: place.tenant.free() == before - cost, "settlement")
    assert place.tenant.reserved() == place.tenant.concurrent() == 0


CLOCK = """
import os, time
real, real_ns = time.time, time.time_ns
def off(): return 3600 if os.path.exists({flag!r}) else 0
time.time = lambda: real() + off()
time.time_ns = lambda: real_ns() + off() * 10**9
"""


def test_fault_20_a_clock_that_steps_an_hour_fails_readiness_and_bends_neither_price_nor_duration(
    database: None, world: World, engine: Engine, tenant: Tenant, tmp_path: Path
) -> None:
    route = world.endpoint(tenant, engine.address)
    flag = tmp_path / "stepped"
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(CLOCK.format(flag=str(flag)))
    with gateway(world, tmp_path, start=False) as door:
        door.environment["PYTHONPATH"] += f":{tmp_path / 'fault'}"
        door.start()
        engine.plan = Plan(tokens=60, interval_s=0.02)
        with ThreadPoolExecutor(1) as caller:
            call = caller.submit(door.chat, tenant, route.endpoint_id, stream=True, max_tokens=100)
            wait_until(lambda: engine.tokens_made > 5, "a few tokens")
            flag.touch()
            assert call.result().text.endswith("data: [DONE]\n\n")
        wait_until(lambda: door.ready().status_code == 503, "notice of the step", 5)
        assert "clock differs" in door.ready().json()["reasons"][0]
        (event,) = door.events_of(tenant)
        assert 1 < (event.ended_at - event.started_at).total_seconds() < 30
        assert abs(event.started_at.timestamp() - time.time()) < 60
        engine.plan = Plan()
        assert door.chat(tenant, route.endpoint_id).status_code == 200
        later = door.events_of(tenant, at_least=2)[-1]
        assert abs(later.started_at.timestamp() - time.time()) < 60  # the script's clock, not the gateway's
        flag.unlink()
        wait_until(lambda: door.ready().status_code == 200, "readiness", 5)
        assert_booked(door, tenant, 2)
