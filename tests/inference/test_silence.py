"""A cluster that takes calls and says nothing holds up one worker for a while, and no other region."""

import threading
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection

from inference import clusters
from inference.clock import database_now
from inference.core.words import Phase
from inference.models import ClusterListing, Deployment, Endpoint, Pool
from inference.reconciler import perform
from inference.reconciler.run import drain, reconcile
from inference.selectors import endpoint_view
from inference.services import endpoint_scale
from inference.sweep import sweep
from k8s.cluster import Applied, Ref, Retry, SilentError
from tests.conftest import as_role
from tests.inference.conftest import Harbour, create
from tests.inference.scripted import ScriptedCluster

GIVE_UP_S = 30.0


class StoppedCluster(ScriptedCluster):
    """While `stopped`, every call is kept waiting until `gave_up` is set; `asked` counts those."""

    def __init__(self):
        super().__init__()
        self.stopped, self.asked = False, 0
        self.is_waited_for, self.gave_up = threading.Event(), threading.Event()

    def apply(self, objects):
        try:
            self._answer()
        except SilentError as error:
            return [Applied(Ref.of(item), Retry(5.0, str(error), silent=True)) for item in objects]
        return super().apply(objects)

    def delete(self, refs, *, grace_s):
        self._answer()
        super().delete(refs, grace_s=grace_s)

    def list(self):
        self._answer()
        return super().list()

    def _answer(self):
        if self.stopped:
            self.asked += 1
            self.is_waited_for.set()
            assert self.gave_up.wait(GIVE_UP_S)
            raise SilentError("timed out")


@pytest.fixture
def far(harbour, monkeypatch):
    """A second region, on a cluster that any sweep comes to before the first one's."""
    name, cluster, known = f"a-far-{uuid4().hex[:8]}", StoppedCluster(), clusters.cluster
    monkeypatch.setattr(clusters, "cluster", lambda asked: cluster if asked == name else known(asked))
    columns = Pool.objects.filter(id=harbour.pool.id).values().get() | {"id": uuid4()}
    pool = Pool.objects.create(**columns | {"region": name, "name": name, "cluster": name})
    yield Harbour(pool, cluster, harbour.neighbours)
    Endpoint.objects.filter(region=name, archived_at=None).update(archived_at=database_now())


@contextmanager
def waits_for(cluster, work):
    """A worker at `work`, which the cluster keeps waiting for as long as the block lasts."""

    def run():
        with as_role("system"):
            work()
        connection.close()

    worker = threading.Thread(target=run)
    worker.start()
    try:
        assert cluster.is_waited_for.wait(GIVE_UP_S)
        yield
        assert worker.is_alive()
    finally:
        cluster.gave_up.set()
        worker.join()


def runs_in(region, tenant):
    endpoint = create(tenant, name=region.pool.name, region=region.pool.region)
    return region.settle(endpoint)


def is_due(endpoint, seconds):
    Endpoint.objects.filter(id=endpoint.id).update(due_at=database_now() - timedelta(seconds=seconds))


def applied(endpoint):
    return Deployment.objects.get(endpoint=endpoint).applied


def replicas(harbour):
    return [item["spec"]["replicas"] for item in harbour.cluster.objects.values() if item["kind"] == "Deployment"]


def test_one_sweep_waits_for_a_silent_cluster_and_the_next_goes_on_without_it(harbour, far, tenant):
    runs_in(far, tenant)
    far.cluster.stopped = True
    with waits_for(far.cluster, sweep):
        new = create(tenant)
        for _ in range(3):
            sweep()
            harbour.cluster.step()
        assert far.cluster.asked == 1
        assert len(applied(new)) == 64
        # Its facts come from listings that nobody held up.
        assert ClusterListing.objects.get(cluster=harbour.pool.cluster).listed_at > new.created_at
    assert ClusterListing.objects.get(cluster=far.pool.cluster).silent_at is not None


def test_a_pass_that_waits_for_a_silent_cluster_holds_no_endpoint_of_another_region(harbour, far, tenant):
    there, here = runs_in(far, tenant), runs_in(harbour, tenant)
    for endpoint in (there, here):
        endpoint_scale(endpoint=endpoint, replicas=2, actor="test")
    is_due(there, 60)
    is_due(here, 30)
    far.cluster.stopped = True
    with waits_for(far.cluster, drain):
        drain()
        assert replicas(harbour) == [2]
    assert ClusterListing.objects.get(cluster=far.pool.cluster).silent_at is not None


def test_no_pass_asks_a_cluster_that_is_known_to_be_silent_and_the_endpoint_says_why(harbour, far, tenant):
    endpoint = runs_in(far, tenant)
    far.cluster.stopped = True
    far.cluster.gave_up.set()
    with pytest.raises(SilentError):
        far.look()
    asked = far.cluster.asked
    endpoint_scale(endpoint=endpoint, replicas=2, actor="test")
    reconcile(endpoint.id)
    assert far.cluster.asked == asked
    fault = Deployment.objects.get(endpoint=endpoint).fault
    assert fault["reason"] == perform.CLUSTER_UNREACHABLE
    assert fault["message"].startswith(f"cluster {far.pool.cluster} has not answered since ")
    view = endpoint_view(Endpoint.objects.get(id=endpoint.id))
    assert (view.phase, view.message) == (Phase.UPDATING, f"1 of 2 replicas serve; {fault['message']}")
    far.cluster.stopped = False
    far.look()
    reconcile(endpoint.id)
    assert replicas(far) == [2]
    assert Deployment.objects.get(endpoint=endpoint).fault is None


def test_a_pool_has_the_nodes_of_its_clusters_last_listing(harbour):
    def node(name, cards, **labels):
        return {
            "kind": "Node",
            "apiVersion": "v1",
            "metadata": {"name": name, "labels": labels},
            "status": {"allocatable": {"example.com/card": str(cards)}},
        }

    Pool.objects.filter(id=harbour.pool.id).update(
        resource_name="example.com/card", node_selector={"is": "ours"}, nodes={"left": 8}
    )
    harbour.cluster.nodes = (node("joined", 8, **{"is": "ours"}), node("other", 8), node("bare", 0, **{"is": "ours"}))
    harbour.look()
    pool = Pool.objects.get(id=harbour.pool.id)
    assert pool.nodes == {"joined": 8, "bare": 0}
    assert pool.capacity == harbour.pool.capacity
