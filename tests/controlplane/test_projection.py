"""The projection on real PostgreSQL and Redis: enough alone, whatever went wrong before."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis

from controlplane import projection, tasks
from inference import selectors
from inference.billable import TOPIC
from inference.models import Deployment, Endpoint, Pool
from inference.ports import Unavailable
from inference.services import endpoint_delete
from kernel import ids, wire
from kernel.clock import utcnow
from kernel.ids import new_id
from tenants.models import Idempotency, Outbox, Tenant
from tenants.outbox import publish
from tenants.services import tenant_create
from tests.services import redis_server


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url(0)


@pytest.fixture
def store(database: None, gateways: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """The gateways' Redis, empty."""
    client = redis.Redis.from_url(gateways)
    client.flushdb()
    monkeypatch.setattr(projection, "client", lambda: client)
    yield client
    client.close()


def berth(tenant: Tenant, rung: str = "dedicated", carrier: Deployment | None = None) -> str:
    """An endpoint as rows: its public id."""
    pool = Pool.objects.create(
        region="elsewhere",
        name=str(new_id()),
        cluster="none",
        accelerator="cpu",
        capacity=1,
        arch="amd64",
        engine_images={},
        weights_root="/weights",
    )
    endpoint = Endpoint.objects.create(
        tenant=tenant,
        name="tiny",
        release="tiny-deepseek",
        rung=rung,
        visibility="public" if rung == "shared" else "private",
        region="elsewhere",
        spec={},
    )
    Deployment.objects.create(
        tenant=tenant,
        endpoint=endpoint,
        pool=pool,
        recipe="tiny-deepseek-cpu",
        replicas=1,
        accelerators=1,
        sku=f"tiny-deepseek:{rung}",
        carrier=carrier,
        tpm=5000 if carrier else 0,
    )
    return ids.encode(ids.ENDPOINT, endpoint.id)


@pytest.fixture
def tenant(database: None) -> Tenant:
    return tenant_create(name="Acme", currency="USD")


def test_a_route_that_is_removed_while_the_whole_is_written_stays_removed(
    store: redis.Redis, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    public_id, other = berth(tenant), berth(tenant_create(name="Other", currency="USD"))
    projection.project_all()
    endpoint = Endpoint.objects.get(id=ids.decode(ids.ENDPOINT, public_id))
    route_list = selectors.route_list

    def remove_behind_its_back() -> list[wire.RouteRecord]:
        routes = route_list()
        endpoint_delete(endpoint=endpoint, actor="test")
        projection.remove_route(endpoint.id)
        return routes

    monkeypatch.setattr(selectors, "route_list", remove_behind_its_back)
    projection.project_all()
    assert store.get(wire.route(public_id)) is None
    assert store.smembers(wire.endpoints(tenant.id)) == set()
    assert store.get(wire.route(other)) is not None


def test_a_stray_route_is_removed_by_the_next_whole_projection(store: redis.Redis, tenant: Tenant) -> None:
    public_id = berth(tenant)
    projection.project_all()
    # A crash between the write and the look for strays left it.
    Endpoint.objects.filter(tenant=tenant).update(archived_at=utcnow(), deletion_requested_at=utcnow())
    projection.project_all()
    assert store.get(wire.route(public_id)) is None


def test_a_route_of_a_release_that_the_catalogue_forgot_is_kept(store: redis.Redis, tenant: Tenant) -> None:
    public_id = berth(tenant)
    projection.project_all()
    Endpoint.objects.filter(tenant=tenant).update(release="local-model")
    projection.project_all()
    assert store.get(wire.route(public_id)) is not None


def test_the_end_of_a_reservation_leaves_the_shared_engines_their_place(store: redis.Redis, tenant: Tenant) -> None:
    shared = ids.decode(ids.ENDPOINT, berth(tenant_create(name="Operator", currency="USD"), "shared"))
    carrier = Deployment.objects.get(endpoint=shared)
    reserved = berth(tenant, "reserved", carrier)
    projection.publish_pods({carrier.id: [wire.PodRecord(str(new_id()), "127.0.0.1:1", wire.SERVING)]})
    projection.project_all()
    record = wire.load_route(store.get(wire.route(reserved)))
    assert (record.tpm, record.deployments[0].deployment_id) == (5000, str(carrier.id))
    projection.remove_route(ids.decode(ids.ENDPOINT, reserved))
    assert store.get(wire.route(reserved)) is None
    assert store.hlen(wire.pods(str(carrier.id))) == 1
    projection.remove_route(shared)
    assert store.hlen(wire.pods(str(carrier.id))) == 0
    Endpoint.objects.filter(id=shared).update(archived_at=utcnow())


def test_a_redis_that_is_away_is_said_in_the_ports_words(database: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "client", lambda: redis.Redis(port=1))
    with pytest.raises(Unavailable):
        projection.remove_route(new_id())


def test_facts_and_answers_that_nobody_reads_again_expire(tenant: Tenant) -> None:
    keys = {name: f"{name}:{new_id()}" for name in ("old", "young", "waiting", "alarm")}
    for name, key in keys.items():
        publish(topic="billing.alarm" if name == "alarm" else TOPIC, dedupe_key=key, payload={})
    facts = Outbox.objects.filter(dedupe_key__in=keys.values())
    facts.exclude(dedupe_key=keys["waiting"]).update(published_at=utcnow() - timedelta(days=8))
    facts.filter(dedupe_key=keys["young"]).update(published_at=utcnow() - timedelta(days=6))
    answer = {"route": "POST /", "fingerprint": b"", "tenant": tenant, "principal": "test"}
    Idempotency.objects.create(key="past", expires_at=utcnow() - timedelta(seconds=1), **answer)
    Idempotency.objects.create(key="kept", expires_at=utcnow() + timedelta(hours=1), **answer)
    tasks.expire()
    assert set(facts.values_list("dedupe_key", flat=True)) == {keys["young"], keys["waiting"], keys["alarm"]}
    assert list(Idempotency.objects.filter(tenant=tenant).values_list("key", flat=True)) == ["kept"]
