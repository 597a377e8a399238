"""Each refusal has its own status, code and sentence, in OpenAI's shape, and costs nothing."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import redis

from kernel import keys, wire
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.world import HELLO, Gateway, Tenant, World, gateway
from tests.services import free_port, wait_until


def refused(answer: httpx2.Response, status: int, code: str, *words: str) -> dict[str, Any]:
    """The error object, after checking its status, code and sentence."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    assert {"message", "type", "param", "code"} <= error.keys()
    for word in words:
        assert word in error["message"]
    assert answer.headers["x-request-id"]
    return error


def nothing_taken(tenant: Tenant, before: int) -> None:
    wait_until(lambda: tenant.free() == before, "the money's return")
    assert tenant.reserved() == tenant.concurrent() == 0


def test_an_unknown_malformed_or_absent_key_is_401(world: World, door: Gateway, tenant: Tenant) -> None:
    unknown = keys.generate().text
    for headers in (
        {"authorization": f"Bearer {unknown}"},
        {"authorization": "Bearer sk-other"},
        {"authorization": f"Basic {tenant.text}"},
        {"x-api-key": tenant.text},
    ):
        answer = httpx2.post(f"{door.url}/v1/chat/completions", headers=headers, json=HELLO)
        refused(answer, 401, "invalid_api_key")
        refused(httpx2.get(f"{door.url}/v1/models", headers=headers), 401, "invalid_api_key")


def test_the_right_id_with_another_secret_is_401(world: World, door: Gateway, tenant: Tenant) -> None:
    text = tenant.text[:-10] + ("A" if tenant.text[-10] != "A" else "B") + tenant.text[-9:-6]
    forged = text + keys._checksum(text)
    assert keys.parse(forged) is not None
    answer = httpx2.post(f"{door.url}/v1/chat/completions", headers={"authorization": f"Bearer {forged}"}, json=HELLO)
    refused(answer, 401, "invalid_api_key")


def test_fault_53_a_key_in_the_url_is_401_and_called_exposed(door: Gateway, tenant: Tenant) -> None:
    answer = httpx2.get(f"{door.url}/v1/models?key={tenant.text}", headers=tenant.headers)
    refused(answer, 401, "invalid_api_key", "revoke it")
    assert tenant.text not in answer.text + door.log.read_text()


def test_a_foreign_endpoint_and_an_absent_one_look_the_same(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    foreign = world.endpoint(world.tenant(), engine.address).endpoint_id
    absent = foreign[:-4] + "zzzz"
    errors = [refused(door.chat(tenant, name), 404, "model_not_found") for name in (foreign, absent)]
    assert errors[0]["message"].replace(foreign, "") == errors[1]["message"].replace(absent, "")
    tenant.change(models=["something-else"])
    own = world.endpoint(tenant, engine.address).endpoint_id
    refused(door.chat(tenant, own), 404, "model_not_found")


def test_fault_47_unknown_paths_and_methods_are_refused_by_name(door: Gateway, tenant: Tenant) -> None:
    for path in (
        "/invocations",
        "/v1/../invocations",
        "/v1/models/",
        "//v1/models",
        "//pause",
        "/v1%2fmodels",
        "/metrics",
        "/v1/messages/../models",
        "/tokenize",
    ):
        answer = door.raw(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert b"404 Not Found" in answer, path
        assert b'"code":"not_found"' in answer
    wrong = httpx2.get(f"{door.url}/v1/chat/completions", headers=tenant.headers)
    refused(wrong, 405, "method_not_allowed", "POST")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"model": "x", ', "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"model":"x","temperature":NaN}', "not valid JSON"),
        (b'{"model":"x","model":"y"}', "twice"),
        (b'{"model":"x","seed":1e400}', "not valid JSON"),
        (b'{"model":"x","a":{"b":1,"\\u0062":2}}', "twice"),
        (b'{"model":"x","a":' + b"[" * 100 + b"]" * 100 + b"}", "deeper"),
        (b'{"model":"x","a":' + b"[" * 100_000, "deeper"),
        (b'{"model":"x","a":[' + b"[]," * 200_000 + b"1]}", "more than"),
        (b'{"model":"\\ud800"}', "not valid JSON"),
        (b'{"model":"\xff"}', "not valid JSON"),
    ],
)
def test_faults_39_and_40_bad_json_is_400_with_the_reason(
    door: Gateway, tenant: Tenant, content: bytes, word: str
) -> None:
    answer = httpx2.post(f"{door.url}/v1/chat/completions", headers=tenant.headers, content=content)
    refused(answer, 400, "invalid_json", word)


@pytest.mark.parametrize("name", ["cache_salt", "priority", "kv_transfer_params", "request_id", "best_of"])
def test_fault_43_a_reserved_field_is_400_and_named(
    world: World, door: Gateway, engine: Engine, tenant: Tenant, name: str
) -> None:
    route = world.endpoint(tenant, engine.address)
    error = refused(door.chat(tenant, route.endpoint_id, **{name: 1}), 400, "reserved_parameter", name)
    assert error["param"] == name
    assert engine.asked == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**40}, "max_tokens"),
        ({"max_completion_tokens": 6}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"n": 16384}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"logits_bias_x": 1}, "logits_bias_x"),
        ({"model": 5}, "model"),
        ({"logprobs": 10**6}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
        ({"structured_outputs": {"regex": "(a+)+$"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "root ::= root root"}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"d": "x" * 70_000}}}, "response_format"),
    ],
)
def test_fault_42_a_bad_parameter_is_400_and_named(
    world: World, door: Gateway, engine: Engine, tenant: Tenant, body: dict[str, Any], param: str
) -> None:
    route = world.endpoint(tenant, engine.address)
    before = tenant.free()
    answer = httpx2.post(
        f"{door.url}/v1/chat/completions",
        headers=tenant.headers,
        json={**HELLO, "model": route.endpoint_id, **body},
    )
    assert refused(answer, 400, "invalid_parameter")["param"] == param
    nothing_taken(tenant, before)


def test_an_empty_balance_is_402_and_says_what_would_fit(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant(free=0)
    route = world.endpoint(tenant, engine.address)
    error = refused(door.chat(tenant, route.endpoint_id), 402, "insufficient_balance", "add credit")
    assert error["affordable_max_tokens"] == 0
    tenant.lend(100_000)
    error = refused(door.chat(tenant, route.endpoint_id, max_tokens=4000), 402, "insufficient_balance")
    most = error["affordable_max_tokens"]
    assert f"at most {most}" in error["message"]
    assert door.chat(tenant, route.endpoint_id, max_tokens=most).status_code == 200
    assert len(door.events_of(tenant)) == 1


def test_a_silent_lender_is_503_not_402(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant(free=None)
    route = world.endpoint(tenant, engine.address)
    began = time.monotonic()
    answer = door.chat(tenant, route.endpoint_id)
    assert 0.4 < time.monotonic() - began < 2
    refused(answer, 503, "unavailable", "could not be checked")
    assert answer.headers["retry-after"] == "1"
    world.redis.delete("v1:want")


def test_requests_per_minute_and_requests_at_a_time_are_told_apart(world: World, door: Gateway, engine: Engine) -> None:
    tenant = world.tenant(rpm=2)
    route = world.endpoint(tenant, engine.address)
    if time.time() % 60 > 55:
        time.sleep(6)
    first = door.chat(tenant, route.endpoint_id)
    assert first.headers["ratelimit-policy"] == '"requests";q=2;w=60'
    assert first.headers["ratelimit"].startswith('"requests";r=1;t=')
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    third = door.chat(tenant, route.endpoint_id)
    refused(third, 429, "rate_limit_exceeded", "2 requests a minute")
    assert 0 < int(third.headers["retry-after"]) <= 60
    tenant = world.tenant(concurrency=1)
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(tokens=1000, interval_s=0.02)
    body = {**HELLO, "model": route.endpoint_id, "stream": True}
    with httpx2.stream("POST", f"{door.url}/v1/chat/completions", headers=tenant.headers, json=body) as busy:
        pieces = busy.iter_raw()
        next(pieces)
        refused(door.chat(tenant, route.endpoint_id), 429, "concurrency_limit_exceeded", "1 requests at a time")
    wait_until(lambda: tenant.concurrent() == 0, "the place's return")


def test_too_long_a_prompt_is_the_engines_word_in_our_shape_and_free(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    sentence = "This model's maximum context length is 4096 tokens. However, your prompt contains ..."
    error = {"message": sentence, "type": "BadRequestError", "param": "input_tokens", "code": 400}
    engine.plan = Plan(status=400, body={"error": error})
    before = tenant.free()
    for stream in (False, True):
        answer = door.chat(tenant, route.endpoint_id, stream=stream)
        refused(answer, 400, "context_length_exceeded", "4096 tokens")
    nothing_taken(tenant, before)
    assert len(engine.asked) == 2


def test_another_refusal_of_the_engine_passes_on_with_its_field(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    error = {"message": "temperature must be ...", "type": "BadRequestError", "param": "temperature", "code": 400}
    engine.plan = Plan(status=400, body={"error": error})
    answer = door.chat(tenant, route.endpoint_id, temperature=-3)
    assert refused(answer, 400, "invalid_parameter", "temperature must be")["param"] == "temperature"


def test_no_replica_is_held_for_and_then_503(world: World, door: Gateway, engine: Engine, tenant: Tenant) -> None:
    route = world.endpoint(tenant)
    world.pod(route, engine.address, "proving")
    before = tenant.free()
    began = time.monotonic()
    answer = door.chat(tenant, route.endpoint_id)
    assert 0.9 < time.monotonic() - began < 3
    refused(answer, 503, "no_replica_ready", "within 1 s")
    assert answer.headers["retry-after"] == "5"
    nothing_taken(tenant, before)
    assert engine.asked == []


def test_a_replica_that_becomes_ready_while_a_request_waits_serves_it(
    world: World, engine: Engine, tenant: Tenant, tmp_path: Any
) -> None:
    route = world.endpoint(tenant)
    with gateway(world, tmp_path, GATEWAY_WAIT_S="20") as door:
        import threading

        threading.Timer(0.7, world.pod, (route, engine.address)).start()
        assert door.chat(tenant, route.endpoint_id).status_code == 200


def test_a_paused_endpoint_is_503_at_once(world: World, door: Gateway, engine: Engine, tenant: Tenant) -> None:
    route = world.endpoint(tenant, engine.address, running=False)
    refused(door.chat(tenant, route.endpoint_id), 503, "no_replica_ready", "paused")


def test_an_engine_that_is_down_is_503_and_free(world: World, door: Gateway, tenant: Tenant) -> None:
    route = world.endpoint(tenant, f"127.0.0.1:{free_port()}")
    before = tenant.free()
    for stream in (False, True):
        refused(door.chat(tenant, route.endpoint_id, stream=stream), 503, "no_replica_ready", "cannot be reached")
    nothing_taken(tenant, before)


def test_an_engine_that_dies_before_its_first_token_is_502_and_free(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    before = tenant.free()
    engine.plan = Plan(die_after=0)
    for stream in (False, True):
        refused(door.chat(tenant, route.endpoint_id, stream=stream), 502, "engine_error")
    engine.plan = Plan(status=500, body={"error": {"message": "cannot schedule new futures"}})
    refused(door.chat(tenant, route.endpoint_id), 502, "engine_error")
    engine.plan = Plan(error_after=0)
    refused(door.chat(tenant, route.endpoint_id, stream=True), 502, "engine_error")
    assert len(engine.asked) == 8
    nothing_taken(tenant, before)


def test_an_engine_that_is_full_is_503_with_retry_after(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    engine.plan = Plan(status=503, body={"error": {"message": "busy", "code": 503}})
    refused(door.chat(tenant, route.endpoint_id), 503, "unavailable", "capacity")
    engine.plan = Plan(error_after=0, error_code=503)
    answer = door.chat(tenant, route.endpoint_id, stream=True)
    refused(answer, 503, "unavailable", "capacity")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_replica_is_retried_once_on_another(
    world: World, door: Gateway, engine: Engine, tenant: Tenant, stream: bool
) -> None:
    for _ in range(6):
        route = world.endpoint(tenant, engine.address, f"127.0.0.1:{free_port()}")
        assert door.chat(tenant, route.endpoint_id, stream=stream).status_code == 200
    events = door.events_of(tenant, at_least=6)
    assert {event.counts["out"] for event in events} == {5}
    assert {event.attempt for event in events} <= {1, 2}
    assert len({event.subject_id for event in events}) == 6


def test_without_a_price_a_request_is_503_unrated(world: World, door: Gateway, engine: Engine, tenant: Tenant) -> None:
    route = world.endpoint(tenant, engine.address, sku="nobody:priced:this")
    refused(door.chat(tenant, route.endpoint_id), 503, "unrated")


def test_fault_56_a_revocation_a_suspension_and_an_expiry_hold_from_the_next_request(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    tenant.change(suspended=True)
    refused(door.chat(tenant, route.endpoint_id), 403, "tenant_suspended")
    refused(httpx2.get(f"{door.url}/v1/models", headers=tenant.headers), 403, "tenant_suspended")
    tenant.change(suspended=False)
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    tenant.change(expires_at=time.time() + 0.3)
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    time.sleep(0.4)
    refused(door.chat(tenant, route.endpoint_id), 401, "invalid_api_key")
    tenant.change(expires_at=None)
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    tenant.change(live=False)
    refused(door.chat(tenant, route.endpoint_id), 401, "invalid_api_key")
    refused(httpx2.get(f"{door.url}/v1/models", headers=tenant.headers), 401, "invalid_api_key")
    world.redis.delete(f"v1:key:{tenant.record.public_id}")
    refused(door.chat(tenant, route.endpoint_id), 401, "invalid_api_key")


def test_fault_56_a_key_of_another_scope_or_model_is_refused_and_one_of_another_region_is_unknown(
    world: World, door: Gateway, engine: Engine, tenant: Tenant
) -> None:
    route = world.endpoint(tenant, engine.address)
    tenant.change(live=False)  # what the projection writes for a key without the scope of inference
    refused(door.chat(tenant, route.endpoint_id), 401, "invalid_api_key")
    tenant.change(live=True, models=["another"])
    refused(door.chat(tenant, route.endpoint_id), 404, "model_not_found")
    elsewhere = Tenant(world, tenant.record, keys.generate().text)  # written to another region's Redis alone
    refused(door.chat(elsewhere, route.endpoint_id), 401, "invalid_api_key")


def test_an_empty_redis_is_503_never_401(world: World, door: Gateway, engine: Engine, tenant: Tenant) -> None:
    route = world.endpoint(tenant, engine.address)
    assert door.chat(tenant, route.endpoint_id).status_code == 200
    stranger = Tenant(world, tenant.record, keys.generate().text)
    for name in ("v1:epoch", "v1:float:run"):
        kept = world.redis.get(name)
        world.redis.delete(name)
        try:
            for caller in (tenant, stranger):
                answer = door.chat(caller, route.endpoint_id)
                refused(answer, 503, "unavailable")
                assert answer.headers["retry-after"] == "1"
            assert door.ready().status_code == 503
        finally:
            world.redis.set(name, kept or b"")
    world.redis.set("v1:float:run", "0" * 40)
    try:
        refused(door.chat(tenant, route.endpoint_id), 503, "unavailable")
    finally:
        world.found()
    assert door.chat(tenant, route.endpoint_id).status_code == 200


def test_fault_8_without_redis_it_is_503_and_it_recovers(world: World, tmp_path: Any, engine: Engine) -> None:
    from tests.services import redis_server

    with gateway(world, tmp_path, start=False) as door:
        with redis_server(tmp_path / "redis") as server:
            client = redis.Redis.from_url(server.url(0))
            small = World(client, server.url(0))
            small.found()
            small.price()
            tenant = small.tenant()
            route = small.endpoint(tenant, engine.address)
            door.environment["REDIS_GATEWAY_URL"] = server.url(0)
            door.start()
            assert door.chat(tenant, route.endpoint_id).status_code == 200
            client.close()
        refused(door.chat(tenant, route.endpoint_id), 503, "unavailable")
        wait_until(lambda: door.boots()["run_id"] is None, "notice of the loss")
        assert door.ready().json() == {"ready": False, "reasons": ["Redis is not connected"]}


def test_fault_56_a_revocation_cuts_open_streams_only_where_that_was_asked(
    world: World, door: Gateway, engine: Engine
) -> None:
    staying, cut = world.tenant(), world.tenant()
    engine.plan = Plan(tokens=150, interval_s=0.02)
    with ThreadPoolExecutor(2) as callers:
        calls = []
        for caller in (staying, cut):
            route = world.endpoint(caller, engine.address)
            calls.append(callers.submit(door.chat, caller, route.endpoint_id, stream=True, max_tokens=4000))
            wait_until(lambda one=caller: one.concurrent() == 1, "admission")  # type: ignore[misc]
            caller.change(live=False)
        world.redis.zadd(wire.CUT, {cut.record.key_id: time.time()})
        whole, broken = (call.result() for call in calls)
    assert whole.text.endswith("data: [DONE]\n\n")
    assert json.loads(broken.text.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "invalid_api_key"
    (event,) = door.events_of(cut)
    assert (event.finish, event.provenance) == ("revoked", "engine_partial")
    assert 0 < event.counts["out"] < 150
    assert engine.hung_up == 1
