"""Faults of the catalogue between the product and an API server, by their numbers: the end is always the intent."""

import contextlib
import threading
import time
from collections import Counter
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.management import call_command

from inference import clusters, facts, orphans, watcher
from inference.clock import database_now
from inference.core.words import Phase
from inference.models import Endpoint, Pool
from inference.reconciler import perform
from inference.reconciler.run import reconcile
from inference.selectors import endpoint_view
from inference.services import endpoint_delete, endpoint_scale
from inference.sweep import sweep
from k8s.client import kinds
from k8s.client.cluster import KubernetesCluster
from k8s.cluster import Ref, UnreachableError
from k8s.desired import RegionBinding, TenantSpec, deployment_objects, name_of, namespace_of, tenant_objects
from tenants.services import tenant_create
from tests.cluster import proxy as faults
from tests.cluster.nodes import machine
from tests.inference.conftest import create, neighbours  # noqa: F401  the other rooms, recorded
from tests.k8s.harness import POOL, SLOT, spec, until

pytestmark = pytest.mark.cluster
IMAGE = "engine.moorage.local/vllm-cpu"
LABELS = {"moorage.dev/pool": "played"}


@pytest.fixture
def proxy(plane):
    proxy = faults.Proxy(plane.kubeconfig("app"), plane.certificate)
    yield proxy
    proxy.close()


@pytest.fixture
def pool(database, site, proxy, neighbours, monkeypatch):  # noqa: F811
    """A pool behind the proxy, half a second's patience; its engines are said to be ready and nothing runs."""
    monkeypatch.setattr("k8s.client.connection._READ_S", 0.5)
    monkeypatch.setattr("k8s.client.watches._SILENCE_S", 0.5)
    monkeypatch.setattr("inference.sweep.WATCHED_S", 0.0)
    cluster = KubernetesCluster(proxy.kubeconfig)
    monkeypatch.setattr(clusters, "cluster", lambda _: cluster)
    name = f"played-{uuid4().hex[:8]}"
    yield Pool.objects.create(
        region=name,
        name=name,
        cluster=name,
        accelerator="cpu",
        resource_name=SLOT,
        node_selector=LABELS,
        capacity=100,
        arch="amd64",
        engine_images={IMAGE: {"image": "registry.example/vllm:1", "version": "0.32.0"}},
        weights_root="/weights",
        releases=["tiny-deepseek"],
    )
    Endpoint.objects.filter(region=name, archived_at__isnull=True).update(archived_at=database_now())


@pytest.fixture
def endpoint(pool, site):
    """An endpoint that nothing was done for yet, and a node with room for it."""
    site.start(machine("played-0", labels=LABELS, resources={SLOT: 100}))
    return create(tenant_create(name="Acme", currency="USD"), region=pool.region)


def step(pool, *endpoints):
    """What a sweep does: list, then a pass over each."""
    with contextlib.suppress(UnreachableError):
        facts.record_listing(pool.cluster, clusters.cluster(pool.cluster))
    for endpoint in endpoints:
        reconcile(endpoint.id)


def reaches(pool, endpoint, phase):
    def stepped():
        step(pool, endpoint)
        endpoint.refresh_from_db()
        return endpoint_view(endpoint).phase is phase

    until(stepped, 30)


def workloads(site, endpoint):
    """The objects that bear the name of an endpoint's deployment, the Deployment first."""
    name = name_of(endpoint.deployments.get().id)
    found = [item for item in site.cluster.list().objects if item["metadata"]["name"] == name]
    return sorted(found, key=lambda item: item["kind"])


def fault_of(endpoint):
    return endpoint.deployments.get().fault


def test_fault_28_a_conflict_is_told_and_the_next_pass_makes_it_so(pool, proxy, site, endpoint):
    proxy.faults["PATCH"] = faults.status(409, "the object has been modified")
    step(pool, endpoint)
    assert "has been modified" in fault_of(endpoint)["message"]
    proxy.faults.clear()
    reaches(pool, endpoint, Phase.RUNNING)
    assert fault_of(endpoint) is None
    endpoint_scale(endpoint=endpoint, actor="test", replicas=2)
    proxy.faults["PATCH"] = faults.status(409)
    step(pool, endpoint)
    proxy.faults.clear()
    reaches(pool, endpoint, Phase.RUNNING)
    assert workloads(site, endpoint)[0]["spec"]["replicas"] == 2


@pytest.mark.parametrize("fault", [faults.expire, faults.status(410)], ids=["in the stream", "at its start"])
def test_fault_29_a_version_that_is_gone_makes_the_watcher_list_again(pool, proxy, site, endpoint, fault):
    reaches(pool, endpoint, Phase.RUNNING)
    deployment = endpoint.deployments.get()
    proxy.faults["WATCH"] = fault
    watcher.follow(pool.cluster, clusters.cluster(pool.cluster), threading.Event())
    site.patch(endpoint.tenant_id, "deployments", name_of(deployment.id), {"spec": {"replicas": 0}})
    watcher.follow(pool.cluster, clusters.cluster(pool.cluster), threading.Event())
    deployment.observed.refresh_from_db()
    assert deployment.observed.facts["replicas"] == 0
    proxy.faults.clear()
    reaches(pool, endpoint, Phase.RUNNING)


@pytest.mark.parametrize(
    ("fault", "waits_s"),
    [
        (faults.status(429, headers={"Retry-After": "40"}), 40),
        (faults.status(500), 5),
        (faults.hang, 5),
        (faults.lose_answer, 5),
    ],
    ids=["429", "500", "hang", "lost answer"],
)
def test_fault_30_a_create_without_an_answer_ends_in_one_object(pool, proxy, site, endpoint, fault, waits_s):
    proxy.faults["PATCH"] = fault
    step(pool, endpoint)
    assert fault_of(endpoint)["reason"] == "ClusterUnreachable"
    endpoint.refresh_from_db()
    assert waits_s - 2 < (endpoint.due_at - database_now()).total_seconds() <= waits_s
    proxy.faults.clear()
    reaches(pool, endpoint, Phase.RUNNING)
    assert [item["kind"] for item in workloads(site, endpoint)] == ["Deployment"]
    assert len(site.pods(endpoint.deployments.get().id)) == 1


def test_fault_31_a_silent_watch_ends_in_time_and_the_next_list_has_the_change(
    pool, proxy, site, endpoint, monkeypatch
):
    reaches(pool, endpoint, Phase.RUNNING)
    monkeypatch.setattr(watcher, "FOLLOW_S", 0.5)
    proxy.faults["WATCH"] = faults.hang
    deployment = endpoint.deployments.get()
    proxy.asked.clear()

    def drop_once_watched():
        until(lambda: any(kind == "WATCH" for kind, _ in proxy.asked))
        site.patch(endpoint.tenant_id, "deployments", name_of(deployment.id), {"spec": {"replicas": 0}})

    silent = threading.Thread(target=drop_once_watched)
    silent.start()
    watcher.follow(pool.cluster, clusters.cluster(pool.cluster), threading.Event())
    silent.join()
    deployment.observed.refresh_from_db()
    assert deployment.observed.facts["replicas"] == 1
    watcher.follow(pool.cluster, clusters.cluster(pool.cluster), threading.Event())
    deployment.observed.refresh_from_db()
    assert deployment.observed.facts["replicas"] == 0
    reaches(pool, endpoint, Phase.RUNNING)
    assert workloads(site, endpoint)[0]["spec"]["replicas"] == 1


def test_fault_32_a_worker_that_died_after_its_write_leaves_an_object_that_the_next_pass_adopts(
    pool, site, endpoint, monkeypatch
):
    def dies(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(perform, "_accept", dies)
        with pytest.raises(SystemExit):
            step(pool, endpoint)
    [before] = workloads(site, endpoint)
    assert endpoint.deployments.get().applied == "pending"
    Endpoint.objects.filter(id=endpoint.id).update(lock_until=endpoint.created_at)
    reaches(pool, endpoint, Phase.RUNNING)
    [after] = workloads(site, endpoint)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    endpoint_delete(endpoint=endpoint, actor="test")
    reaches(pool, endpoint, Phase.DELETED)
    assert workloads(site, endpoint) == []


def test_fault_32_what_ended_is_deleted_and_what_no_row_accounts_for_by_an_operators_word(
    pool, site, endpoint, monkeypatch
):
    reaches(pool, endpoint, Phase.RUNNING)
    other = create(endpoint.tenant, region=pool.region, name="other")
    reaches(pool, other, Phase.RUNNING)
    ended = other.deployments.get().id
    endpoint_delete(endpoint=other, actor="test")
    reaches(pool, other, Phase.DELETED)
    stranger, ours, undone = uuid4(), endpoint.tenant_id, uuid4()
    for tenant_id, deployment_id in ((stranger, uuid4()), (ours, undone), (ours, ended)):
        tenant = TenantSpec(tenant_id=tenant_id, pods=4)
        manifests = tenant_objects(tenant, RegionBinding(name=pool.region)) if tenant_id == stranger else []
        manifests += deployment_objects(spec(tenant_id=tenant_id, deployment_id=deployment_id, replicas=0), POOL)
        assert all(result.error is None for result in site.cluster.apply(manifests))
    before = workloads_of(site, stranger) | workloads_of(site, ours)
    sweep()
    assert workloads_of(site, stranger) | workloads_of(site, ours) == before
    monkeypatch.setattr(orphans, "ORPHAN_AFTER", timedelta(seconds=-5))
    sweep()
    live = name_of(endpoint.deployments.get().id)
    assert workloads_of(site, ours) == {live, name_of(undone)}
    call_command("cluster", "orphans", pool.cluster)
    assert workloads_of(site, ours) == {live, name_of(undone)}
    call_command("cluster", "orphans", pool.cluster, "--delete")
    assert workloads_of(site, ours) == {live}
    assert len(workloads_of(site, stranger)) == 1
    endpoint.refresh_from_db()
    assert endpoint_view(endpoint).phase is Phase.RUNNING


def workloads_of(site, tenant_id):
    """The names of a tenant's Deployments."""
    items = site.cluster.list().objects
    own = [item for item in items if item["metadata"].get("namespace") == namespace_of(tenant_id)]
    return {item["metadata"]["name"] for item in own if item["kind"] == "Deployment"}


def test_a_resync_over_many_endpoints_writes_nothing_and_lists_each_kind_once(pool, proxy, site):
    site.start(machine("played-0", labels=LABELS, resources={SLOT: 100}))
    tenants = [tenant_create(name=f"Acme {number}", currency="USD") for number in range(3)]
    many = [create(tenant, region=pool.region, name=f"e{number}") for tenant in tenants for number in range(8)]
    until(lambda: step(pool, *many) or all(run(endpoint) for endpoint in many), 120)
    site_versions = until(lambda: at_rest(site))
    proxy.asked.clear()
    written = len(site.plane.writes())
    for _ in range(3):
        step(pool, *many)
    assert len(site.plane.writes()) == written
    assert Counter(method for method, _ in proxy.asked) == {"GET": 3 * len(kinds.READ)}
    assert set(Counter(proxy.asked).values()) == {3}
    assert versions(site) == site_versions


def run(endpoint):
    endpoint.refresh_from_db()
    return endpoint_view(endpoint).phase is Phase.RUNNING


def versions(site):
    return {Ref.of(item): item["metadata"]["resourceVersion"] for item in site.cluster.list().objects}


def at_rest(site):
    before = versions(site)
    time.sleep(1)
    return before if versions(site) == before else None
