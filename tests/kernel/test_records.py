"""What two rooms share reads back as it was written."""

import json
from dataclasses import replace
from datetime import UTC, datetime

from kernel import ids, problems, wire
from kernel.problems import Problem
from kernel.usage import ENGINE_FINAL, TOKENS, UsageEvent

AT = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
EVENT = UsageEvent(
    event_id=ids.new_id(),
    source="gw-1",
    tenant_id=ids.new_id(),
    subject_id=ids.new_id(),
    kind=TOKENS,
    sku="m:shared",
    region="local",
    currency="USD",
    started_at=AT,
    ended_at=AT,
    counts={"in_miss": 3, "out": 4},
    sheet=b"\x01" * 32,
    quoted_pico=10**25,
    provenance=ENGINE_FINAL,
    finish="stop",
    api_key_id=ids.new_id(),
    pod_uid=ids.new_id(),
    engine_usage={"prompt_tokens": 3},
    purse="general",
    generation=2,
    reserved_pico=10**26,
)


def test_a_usage_event_survives_json_and_keeps_its_hash() -> None:
    again = UsageEvent.from_json(json.loads(json.dumps(EVENT.to_json())))
    assert again == EVENT
    assert again.payload_sha256() == EVENT.payload_sha256()


def test_a_changed_count_changes_the_hash() -> None:
    assert replace(EVENT, counts={"in_miss": 3, "out": 5}).payload_sha256() != EVENT.payload_sha256()


def test_optional_parts_may_be_absent() -> None:
    bare = replace(EVENT, api_key_id=None, pod_uid=None, engine_usage=None)
    assert UsageEvent.from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_redis_records_read_back() -> None:
    key = wire.KeyRecord("k", "p", "t", "00", 1, "USD", ["general"], 60, 4, expires_at=1.5, models=["ep_1"])
    route = wire.RouteRecord(
        "ep_1", "t", False, "m", "m", "local", 2048, 3, True, 0, [wire.DeploymentRoute("d", 100, "m:shared")]
    )
    pod, want = wire.PodRecord("u", "127.0.0.2:8000", wire.SERVING), wire.Want("t", "general", "USD", 5)
    assert wire.load_key(wire.dumps(key)) == key
    assert wire.load_route(wire.dumps(route)) == route
    assert wire.load_pod(wire.dumps(pod)) == pod
    assert wire.load_want(wire.dumps(want)) == want
    assert wire.decode_hash({b"a": b"1"}) == {"a": "1"}


def test_redis_names_do_not_collide() -> None:
    float_name = wire.float_key("t", "general", "USD")
    names = [
        wire.key("a"),
        wire.route("a"),
        wire.pods("a"),
        wire.endpoints("a"),
        wire.sheets("a", "b", "c"),
        float_name,
        wire.reservations(float_name),
        wire.pending(float_name),
        wire.rpm("a", 1),
        wire.concurrency("a"),
        wire.EPOCH,
        wire.WANT,
        wire.SHARED,
        wire.FLOATS,
        wire.FLOAT_RUN,
    ]
    assert len(set(names)) == len(names)


def test_a_problem_speaks_both_dialects() -> None:
    problem = Problem(problems.RATE_LIMITED, "at most 60 a minute", param="rpm", extra={"limit": 60})
    rest, openai = problem.as_rfc9457(), problem.as_openai()["error"]
    assert (rest["status"], rest["code"], rest["param"]) == (429, "rate_limit_exceeded", "rpm")
    assert (openai["code"], openai["type"], openai["limit"]) == (
        "rate_limit_exceeded",
        "rate_limit_error",
        60,
    )
    assert str(problem) == "rate_limit_exceeded: at most 60 a minute"
    assert "param" not in Problem(problems.INTERNAL, "x").as_rfc9457()
