"""The internal listener: its token, the journal's pages, probes, metrics."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import httpx2
import pytest
from django.conf import settings

from controlplane.probe import probe
from kernel import wire
from kernel.usage import UsageEvent
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.world import HELLO, TOKEN, Gateway, Tenant, World, gateway
from tests.services import wait_until


def test_without_the_token_nothing_but_readiness_is_shown(door: Gateway) -> None:
    for path in ("/internal/journal", "/internal/metrics", f"/internal/journal/{'0' * 36}"):
        for headers in ({}, {"authorization": "Bearer wrong"}):
            assert httpx2.get(door.internal + path, headers=headers).status_code == 401
    assert httpx2.post(f"{door.internal}/v1/completions", json=HELLO).status_code == 401
    assert door.ready().json() == {"ready": True, "reasons": []}


def test_the_public_door_does_not_lead_inside(door: Gateway) -> None:
    headers = {"authorization": "Bearer internal-token"}
    assert httpx2.get(f"{door.url}/internal/journal", headers=headers).status_code == 404


def test_the_journal_comes_in_pages_and_says_who_and_how_far(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    for _ in range(5):
        assert door.chat(tenant, route.endpoint_id).status_code == 200
    listing = door.boots()
    assert listing["gateway_id"] == "gw-test"
    assert listing["run_id"] == world.redis.info("server")["run_id"]
    seconds, micros = world.redis.time()
    assert abs(listing["low"] - (seconds * 1000 + micros / 1000)) < 2000
    (boot,) = listing["boots"]
    assert boot["boot_id"] == listing["boot_id"]
    assert boot["closed"] is False
    first = boot["head"] - 4
    path = f"/internal/journal/{boot['boot_id']}"
    page = door.inside("GET", f"{path}?from={first}&limit=2").json()
    assert [entry["seq"] for entry in page["events"]] == [first, first + 1]
    assert (page["head"], page["closed"]) == (boot["head"], False)
    for entry in page["events"]:
        assert UsageEvent.from_json(entry["event"]).to_json() == entry["event"], "not the shape that the kernel writes"
    rest = door.inside("GET", f"{path}?from={first + 2}").json()
    assert [entry["seq"] for entry in rest["events"]] == [first + 2, first + 3, first + 4]
    assert door.inside("GET", f"{path}?from={boot['head'] + 1}").json()["events"] == []
    assert door.inside("GET", f"{path}?from={boot['head'] + 2}").status_code == 400
    assert door.inside("GET", f"{path}?from=0").status_code == 400


def test_low_is_the_admission_of_the_oldest_open_request(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=4000, interval_s=0.02)
    body = {**HELLO, "model": route.endpoint_id, "stream": True}
    with httpx2.stream("POST", f"{door.url}/v1/chat/completions", headers=tenant.headers, json=body) as busy:
        pieces = busy.iter_raw()
        next(pieces)
        low = door.boots()["low"]
        for _ in range(3):
            assert door.boots()["low"] == low
    (event,) = door.events_of(tenant)
    assert low == int(event.started_at.timestamp() * 1000)
    assert door.boots()["low"] > low


def test_a_probe_reaches_a_proving_replica_and_is_neither_admitted_nor_billed(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant)
    uid = world.pod(route, engine.address, "proving")
    headers = {"x-moorage-pod": f"{route.deployments[0].deployment_id}/{uid}"}
    body = {"model": "served", **HELLO}
    before = door.boots()["boots"][-1]["head"]
    answer = door.inside("POST", "/v1/chat/completions", headers=headers, json=body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 5
    assert engine.asked[-1] == body
    assert "internal-token" not in engine.heads[-1]
    stream = door.inside("POST", "/v1/completions", headers=headers, json={**body, "stream": True})
    assert stream.text.endswith("data: [DONE]\n\n")
    assert door.boots()["boots"][-1]["head"] == before
    engine.plan = Plan(status=400, body={"error": {"message": "no"}})
    assert door.inside("POST", "/v1/completions", headers=headers, json=body).status_code == 400
    for pod in ("nonsense", f"{route.deployments[0].deployment_id}/other"):
        answer = door.inside("POST", "/v1/completions", headers={"x-moorage-pod": pod}, json=body)
        assert answer.json()["error"]["code"] == "no_replica_ready"


def test_a_replica_proves_itself_only_where_it_counts_in_every_piece_unasked(
    world: World, door: Gateway, engine: Engine, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "GATEWAY_INTERNAL_URLS", [door.internal])
    monkeypatch.setattr(settings, "INTERNAL_TOKEN", TOKEN)
    route = world.endpoint(tenant)
    pod = UUID(world.pod(route, engine.address, "proving"))
    deployment = UUID(route.deployments[0].deployment_id)
    engine.plan = Plan(tokens=1)
    assert probe(deployment, pod)
    assert "stream_options" not in engine.asked[-1]
    for plan in (
        Plan(tokens=1, counts=False),
        Plan(tokens=1, says=0),
        Plan(tokens=1, error_after=0),
        Plan(tokens=1, die_after=0),
        Plan(status=500, body={"error": {"message": "no"}}),
    ):
        engine.plan = plan
        assert not probe(deployment, pod), plan
    assert not probe(deployment, uuid4())


def test_metrics_count_requests_and_tokens_by_fixed_words(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    door.chat(tenant, route.endpoint_id)
    door.chat(tenant, "nope")
    text = door.inside("GET", "/internal/metrics").text
    assert 'gateway_requests_total{route="/v1/chat/completions",end="stop"}' in text
    assert 'gateway_requests_total{route="/v1/chat/completions",end="model_not_found"}' in text
    assert 'gateway_tokens_total{meter="out"}' in text
    assert "gateway_redis_connected 1" in text
    assert "nope" not in text


def test_a_journal_that_cannot_be_looked_at_stops_neither_time_limits_nor_cuts(
    world: World, engine: Engine, tmp_path: Path
) -> None:
    caller = world.tenant()
    route = world.endpoint(caller, engine.address)
    engine.plan = Plan(tokens=500, interval_s=0.02)
    with gateway(world, tmp_path) as door, ThreadPoolExecutor(1) as callers:
        boot = tmp_path / "journal" / "gw-test" / door.boots()["boot_id"]
        boot.rename(boot.with_name("away"))

        def told() -> bool:
            text = door.inside("GET", "/internal/metrics").text
            return any(line.startswith("gateway_watch_failures_total ") for line in text.splitlines())

        wait_until(told, "a failed look")
        call = callers.submit(door.chat, caller, route.endpoint_id, stream=True, max_tokens=4000)
        wait_until(lambda: caller.concurrent() == 1, "admission")
        caller.change(live=False)
        world.redis.zadd(wire.CUT, {caller.record.key_id: time.time()})
        broken = call.result()
        boot.with_name("away").rename(boot)
    assert '"code":"invalid_api_key"' in broken.text
