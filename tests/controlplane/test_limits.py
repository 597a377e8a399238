"""A key's limits and a tenant's caps: from the API and the services to the record that gateways read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from django.conf import settings

from controlplane import keys, projection
from kernel import wire
from kernel.clock import month_of, utcnow
from tenants import services
from tenants.models import ApiKey
from tests.billing.harbour import harbour as build
from tests.controlplane.test_api import Api, new_key
from tests.services import redis_server


@pytest.fixture
def gateways(tmp_path: Path, database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator["redis.Redis[bytes]"]:
    """The gateways' Redis, empty."""
    with redis_server(tmp_path) as server:
        monkeypatch.setattr(settings, "REDIS_GATEWAY_URL", server.url(1))
        projection.client.cache_clear()
        yield projection.client()
        projection.client.cache_clear()


def record(gateways: "redis.Redis[bytes]", public_id: str) -> wire.KeyRecord:
    return wire.load_key(gateways.hget(wire.key(public_id), "r") or b"")


def test_limits_set_over_the_api_reach_the_gateways_with_a_new_version(gateways: "redis.Redis[bytes]") -> None:
    api = Api(["manage"])
    made = api.call("POST", "/api-keys", {"name": "x"}, **new_key()).json()
    assert record(gateways, made["public_id"]).spend_cap_pico == 0
    wanted = {"rpm": 7, "tpm_cached": 11, "tpm_uncached": 12, "tpm_generated": 13, "spend_cap": "1.5", "user_cap": "0"}
    answer = api.call("PATCH", f"/api-keys/{made['public_id']}", wanted)
    assert answer.status_code == 200
    assert answer.json() | wanted == answer.json()
    found = record(gateways, made["public_id"])
    assert (found.rpm, found.tpm_cached, found.tpm_uncached, found.tpm_generated) == (7, 11, 12, 13)
    assert (found.spend_cap_pico, found.user_cap_pico, found.version) == (15 * 10**11, 0, 2)


@pytest.mark.parametrize(
    ("limits", "param"),
    [
        ({"rpm": 0}, "rpm"),
        ({"tpm_cached": -1}, "tpm_cached"),
        ({"spend_cap": "-1"}, "spend_cap"),
        ({"spend_cap": "a"}, "spend_cap"),
        ({"user_cap": "9999999999"}, "user_cap"),
    ],
)
def test_a_limit_out_of_range_is_400_and_named(database: None, limits: dict[str, object], param: str) -> None:
    api = Api(["manage"])
    key = ApiKey.objects.get(tenant=api.tenant)
    answer = api.call("PATCH", f"/api-keys/{key.public_id}", limits)
    assert (answer.status_code, answer.json()["param"]) == (400, param)


def test_anothers_key_and_an_absent_endpoint_are_404(database: None) -> None:
    api, other = Api(["manage"]), Api(["manage"])
    key = ApiKey.objects.get(tenant=other.tenant)
    assert api.call("PATCH", f"/api-keys/{key.public_id}", {"rpm": 1}).status_code == 404
    assert api.call("PUT", "/endpoints/ep_nobody/cap", {"cap": "1"}).status_code == 404


def test_a_cap_counts_from_the_months_beginning_and_an_empty_redis_is_seeded(
    gateways: "redis.Redis[bytes]",
) -> None:
    harbour = build()
    key, _ = services.api_key_create(tenant_id=harbour.tenant_id, name="k", actor="t")
    event = harbour.event(api_key_id=key.id, endpoint_id="ep_1")
    harbour.ingest(event)
    keys.key_limit(key=key, limits={"spend_cap_pico": 10**12}, actor="t")
    keys.endpoint_cap(tenant_id=harbour.tenant_id, endpoint_id="ep_1", cap_pico=10**12, actor="t")
    found = record(gateways, key.public_id)
    assert (found.spend_cap_pico, found.endpoint_caps_pico) == (10**12, {"ep_1": 10**12})
    start, end = month_of(utcnow())
    counters = [
        wire.spend(str(key.id), wire.month(start)),
        wire.spend(wire.spend_at_endpoint(harbour.tenant_id, "ep_1"), wire.month(start)),
    ]
    for name in counters:
        assert int(gateways.get(name) or 0) == event.quoted_pico > 0
        gateways.incrby(name, 5)
    projection.project_all()
    assert [int(gateways.get(name) or 0) for name in counters] == [event.quoted_pico + 5] * 2
    gateways.flushdb()
    projection.project_all()
    assert [int(gateways.get(name) or 0) for name in counters] == [event.quoted_pico] * 2
    assert gateways.ttl(counters[0]) > (end - utcnow()).total_seconds()
    keys.endpoint_cap(tenant_id=harbour.tenant_id, endpoint_id="ep_1", cap_pico=0, actor="t")
    assert record(gateways, key.public_id).endpoint_caps_pico == {}


def test_a_cap_per_end_user_counts_from_the_months_beginning_and_an_empty_redis_is_seeded(
    gateways: "redis.Redis[bytes]",
) -> None:
    harbour = build()
    key, _ = services.api_key_create(tenant_id=harbour.tenant_id, name="k", actor="t")
    events = [harbour.event(api_key_id=key.id, end_user=user) for user in ("ann", "ann", "bob", "")]
    harbour.ingest(*events)
    one = events[0].quoted_pico

    def counted() -> list[int]:
        names = [wire.spend(wire.spend_of_user(key.id, user), wire.month(utcnow())) for user in ("ann", "bob", "cy")]
        return [int(gateways.get(name) or 0) for name in names]

    keys.key_limit(key=key, limits={"user_cap_pico": 10**12}, actor="t")
    assert counted() == [2 * one, one, 0]
    gateways.incrby(wire.spend(wire.spend_of_user(key.id, "ann"), wire.month(utcnow())), 5)
    projection.project_all()
    assert counted() == [2 * one + 5, one, 0]
    gateways.flushdb()
    projection.project_all()
    assert counted() == [2 * one, one, 0]
    keys.key_limit(key=key, limits={"user_cap_pico": 0}, actor="t")
    assert counted() == [0, 0, 0]
    harbour.ingest(harbour.event(api_key_id=key.id, end_user="bob"))
    keys.key_limit(key=key, limits={"user_cap_pico": 10**12}, actor="t")
    assert counted() == [2 * one, 2 * one, 0]
    second, _ = keys.key_rotate(key=key, actor="t")
    assert int(gateways.get(wire.spend(wire.spend_of_user(second.id, "bob"), wire.month(utcnow()))) or 0) == 2 * one


def test_a_rotated_key_counts_on_with_what_its_predecessors_spent(gateways: "redis.Redis[bytes]") -> None:
    harbour = build()
    key, _ = services.api_key_create(tenant_id=harbour.tenant_id, name="k", actor="t")
    event = harbour.event(api_key_id=key.id)
    harbour.ingest(event)
    keys.key_limit(key=key, limits={"spend_cap_pico": 10**12}, actor="t")
    month = wire.month(utcnow())
    gateways.incrby(wire.spend(str(key.id), month), 5)  # admitted and not on the books yet
    second, _ = keys.key_rotate(key=key, actor="t")
    third, _ = keys.key_rotate(key=second, actor="t")
    counters = [wire.spend(str(one.id), month) for one in (key, second, third)]
    assert [int(gateways.get(name) or 0) for name in counters] == [event.quoted_pico + 5] * 3
    gateways.flushdb()
    projection.project_all()
    assert [int(gateways.get(name) or 0) for name in counters] == [event.quoted_pico] * 3


def test_a_cap_taken_away_and_set_again_counts_what_was_spent_between(gateways: "redis.Redis[bytes]") -> None:
    harbour = build()
    key, _ = services.api_key_create(tenant_id=harbour.tenant_id, name="k", actor="t")
    start, _ = month_of(utcnow())
    counters = [
        wire.spend(whose, wire.month(start))
        for whose in (str(key.id), wire.spend_at_endpoint(harbour.tenant_id, "ep_1"))
    ]
    for cap_pico in (10**12, 0, 10**12):
        keys.key_limit(key=key, limits={"spend_cap_pico": cap_pico}, actor="t")
        keys.endpoint_cap(tenant_id=harbour.tenant_id, endpoint_id="ep_1", cap_pico=cap_pico, actor="t")
        if not cap_pico:
            event = harbour.event(api_key_id=key.id, endpoint_id="ep_1")
            harbour.ingest(event)
    assert [int(gateways.get(name) or 0) for name in counters] == [event.quoted_pico] * 2


@pytest.mark.parametrize("cut", [False, True])
def test_a_revocation_asks_for_a_cut_only_where_told(gateways: "redis.Redis[bytes]", cut: bool) -> None:
    api = Api(["manage"])
    made = api.call("POST", "/api-keys", {"name": "x"}, **new_key()).json()["public_id"]
    assert api.call("DELETE", f"/api-keys/{made}{'?cut=true' if cut else ''}").status_code == 200
    found = record(gateways, made)
    assert not found.live
    assert (gateways.zscore(wire.CUT, found.key_id) is not None) == cut
