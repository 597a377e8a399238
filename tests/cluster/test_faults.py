"""An API server that refuses, hangs, breaks off or goes away: told as what it is, and over when it is over."""

import threading
import time
from dataclasses import replace
from uuid import uuid4

import pytest

from k8s.client.cluster import KubernetesCluster
from k8s.cluster import Quota, Ref, Retry, SilentError, UnreachableError
from k8s.desired import RegionBinding, TenantSpec, deployment_objects, deployment_refs, tenant_objects
from tests.cluster import proxy as faults
from tests.cluster.nodes import STRATEGIC, machine
from tests.k8s.harness import POOL, spec, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def proxy(plane):
    proxy = faults.Proxy(plane.kubeconfig("app"), plane.certificate)
    yield proxy
    proxy.close()


@pytest.fixture
def cluster(proxy, monkeypatch):
    """Moorage's client behind the proxy, with half a second's patience."""
    monkeypatch.setattr("k8s.client.connection._READ_S", 0.5)
    monkeypatch.setattr("k8s.client.watches._SILENCE_S", 0.5)
    return KubernetesCluster(proxy.kubeconfig)


@pytest.fixture
def quota():
    """One namespace and the objects in it, none of which exist."""
    return tenant_objects(TenantSpec(tenant_id=uuid4(), pods=1), RegionBinding(name="local"))


@pytest.mark.parametrize(
    ("fault", "after_s"),
    [
        (faults.status(429, headers={"Retry-After": "7"}), 7),
        (faults.status(500), 5),
        (faults.status(503), 5),
        (faults.cut, 5),
        (faults.hang, 5),
        (faults.garble, 5),
    ],
    ids=["429", "500", "503", "cut", "hang", "no JSON"],
)
def test_an_apply_that_nobody_answered_properly_may_be_tried_again(cluster, proxy, quota, fault, after_s):
    proxy.faults["PATCH"] = fault
    began = time.monotonic()
    results = cluster.apply(quota[:1] * 5)
    assert time.monotonic() - began < 2
    silent = fault is faults.hang
    assert [result.error and replace(result.error, message="") for result in results] == [
        Retry(after_s, "", silent)
    ] * 5
    proxy.faults.clear()
    [result] = cluster.apply(quota[:1])
    assert result.error is None


def test_a_write_whose_answer_was_lost_is_not_made_twice(cluster, proxy, quota):
    proxy.faults["PATCH"] = faults.lose_answer
    [result] = cluster.apply(quota[:1])
    assert isinstance(result.error, Retry)
    proxy.faults.clear()

    def version():
        return next(
            item["metadata"]["resourceVersion"] for item in cluster.list().objects if Ref.of(item) == result.ref
        )

    before = version()
    [result] = cluster.apply(quota[:1])
    assert (version(), result.error) == (before, None)


@pytest.mark.parametrize("fault", [faults.status(429), faults.status(500), faults.cut, faults.hang, faults.garble])
def test_a_list_that_failed_knows_nothing(cluster, proxy, fault):
    proxy.faults["GET"] = fault
    with pytest.raises(UnreachableError):
        cluster.list()
    proxy.faults.clear()
    assert cluster.list().version


def test_a_list_that_nobody_answers_says_that_whoever_asks_would_wait(cluster, proxy):
    proxy.faults["GET"] = faults.hang
    with pytest.raises(SilentError):
        cluster.list()
    proxy.faults["GET"] = faults.cut
    with pytest.raises(UnreachableError) as cut:
        cluster.list()
    assert not isinstance(cut.value, SilentError)


def test_a_log_that_nobody_gave_is_not_an_empty_one(cluster, proxy):
    pod = Ref("v1", "Pod", "default", "any")
    assert cluster.log(pod, 1) == ""
    proxy.faults["GET"] = faults.status(500)
    with pytest.raises(UnreachableError):
        cluster.log(pod, 1)


def test_a_delete_that_failed_says_so(cluster, proxy, quota):
    cluster.apply(quota)
    refs = [Ref.of(item) for item in quota[1:]]
    proxy.faults["DELETE"] = faults.status(500)
    with pytest.raises(UnreachableError):
        cluster.delete(refs, grace_s=None)
    proxy.faults.clear()
    cluster.delete(refs, grace_s=None)
    left = {Ref.of(item) for item in cluster.list().objects}
    assert not left & set(refs)


@pytest.mark.parametrize("fault", [faults.expire, faults.status(410)], ids=["in the stream", "at its start"])
def test_a_version_that_is_too_old_ends_the_changes_at_once(cluster, proxy, fault):
    since = cluster.list().version
    proxy.faults["WATCH"] = fault
    began = time.monotonic()
    assert list(cluster.changes(since, timeout_s=10)) == []
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("fault", [faults.break_off, faults.cut, faults.status(500)])
def test_a_watch_that_broke_says_so(cluster, proxy, fault):
    since = cluster.list().version
    proxy.faults["WATCH"] = fault
    with pytest.raises(UnreachableError):
        list(cluster.changes(since, timeout_s=10))


def test_nothing_is_left_out_after_a_broken_watch(cluster, proxy, quota):
    since = cluster.list().version
    cluster.apply(quota[:1])
    proxy.faults["WATCH"] = faults.cut
    with pytest.raises(UnreachableError):
        list(cluster.changes(since, timeout_s=10))
    proxy.faults.clear()
    seen = next(change for change in cluster.changes(since, timeout_s=10) if change.object["kind"] == "Namespace")
    assert seen.object["metadata"]["name"] == quota[0]["metadata"]["name"]


def test_changes_that_nobody_reads_on_leave_no_thread_behind(cluster, quota):
    since = cluster.list().version
    cluster.apply(quota[:1])
    changes = cluster.changes(since, timeout_s=60)
    next(changes)
    assert any(thread.name.startswith("watch-") for thread in threading.enumerate())
    changes.close()
    until(lambda: not any(thread.name.startswith("watch-") for thread in threading.enumerate()), 3)


def test_an_account_without_rights_is_told_what_it_lacks(plane, quota):
    stranger = KubernetesCluster(plane.kubeconfig("scheduler"))
    [result] = stranger.apply(quota[:1])
    assert isinstance(result.error, Retry)
    assert 'cannot patch resource "namespaces"' in result.error.message
    with pytest.raises(UnreachableError, match="cannot list resource"):
        stranger.list()
    with pytest.raises(UnreachableError, match="cannot delete resource"):
        stranger.delete(deployment_refs(uuid4(), uuid4()), grace_s=None)


def test_a_token_that_nobody_knows_is_refused_and_not_asked_for_soon_again(plane, quota):
    kubeconfig = plane.kubeconfig("app")
    kubeconfig["users"][0]["user"]["token"] = "unknown"
    [result] = KubernetesCluster(kubeconfig).apply(quota[:1])
    assert isinstance(result.error, Retry)
    assert result.error.after_s == 30


def test_a_kubeconfig_that_makes_no_sense_is_refused_as_such():
    with pytest.raises(ValueError, match="kubeconfig"):
        KubernetesCluster({"apiVersion": "v1", "kind": "Config"})


def test_a_namespace_on_its_way_out_is_worth_another_try(site, quota):
    site.cluster.apply(quota)
    namespace = Ref.of(quota[0])
    site.cluster.delete([namespace], grace_s=None)
    site.cluster.delete([namespace], grace_s=None)
    site.cluster.delete([Ref.of(item) for item in quota[1:]], grace_s=None)
    result = site.cluster.apply(quota)[1]
    assert isinstance(result.error, Retry)
    assert "terminated" in result.error.message


def test_a_namespace_whose_quota_is_used_up_is_told_apart_from_a_bad_manifest(site):
    tenant = TenantSpec(tenant_id=uuid4(), pods=1)
    objects = tenant_objects(tenant, RegionBinding(name="local"))
    objects[1]["spec"]["hard"]["count/deployments.apps"] = "0"
    site.cluster.apply(objects)
    until(lambda: "status" in site.stored(tenant.tenant_id, "resourcequotas", "tenant", "api/v1"))
    [result] = site.cluster.apply(deployment_objects(spec(tenant_id=tenant.tenant_id, replicas=0), POOL))
    assert isinstance(result.error, Quota)
    assert "count/deployments.apps" in result.error.message


def test_a_sign_of_life_of_a_node_is_no_change_and_its_silence_is(site):
    site.start(machine("beating"))
    path = "/api/v1/nodes/beating/status"
    until(lambda: not site.admin.call("GET", path)["spec"].get("taints"))
    since = site.cluster.list().version
    for ready in ("True", "Unknown"):
        condition = {"type": "Ready", "status": ready, "lastHeartbeatTime": "2026-11-24T12:00:00Z"}
        site.admin.call("PATCH", path, body={"status": {"conditions": [condition]}}, content_type=STRATEGIC)
    change = next(site.cluster.changes(since, timeout_s=10))
    assert [item["status"] for item in change.object["status"]["conditions"]] == ["Unknown"]


def test_an_api_server_that_restarts_is_found_again(site, plane, quota):
    changes = site.cluster.changes(site.cluster.list().version, timeout_s=30)
    site.cluster.apply(quota)
    next(changes)
    plane.stop("kube-apiserver")
    began = time.monotonic()
    with pytest.raises(UnreachableError):
        list(changes)
    with pytest.raises(UnreachableError):
        site.cluster.list()
    [result, *_] = site.cluster.apply(quota)
    assert isinstance(result.error, Retry)
    assert time.monotonic() - began < 2
    plane.restart("kube-apiserver")

    def follow():
        """As a watcher: list, follow, and begin anew where nobody answers; the server may not be warm yet."""
        try:
            listed = site.cluster.list()
            assert quota[0]["metadata"]["name"] in {item["metadata"]["name"] for item in listed.objects}
            list(site.cluster.changes(listed.version, timeout_s=0.5))
        except UnreachableError:
            return False
        return True

    until(follow)
