"""Facts from raw objects, in Kubernetes' own shapes."""

from uuid import UUID

import pytest

from k8s import observe as o
from k8s.cluster import Snapshot
from k8s.desired import DEPLOYMENT_LABEL, ROLE_LABEL, SPEC_HASH_LABEL, deployment_objects
from kernel import ids
from tests.k8s.golden_cases import POOLS, workload

DEPLOYMENT = workload().deployment_id
READY_NODE = {
    "kind": "Node",
    "metadata": {"name": "n1"},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}
LOST_NODE = {**READY_NODE, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}


def deployment(replicas=1, status=None):
    [item, *_] = deployment_objects(workload(replicas=replicas), POOLS["nvidia"])
    item["metadata"]["generation"] = 7
    return {**item, "status": {"observedGeneration": 7} if status is None else status}


def pod(
    name="p1",
    *,
    node="n1",
    ready=False,
    container=None,
    spec_hash=None,
    meta=None,
    ready_at="2026-11-24T08:02:00Z",
    **status,
):
    template = deployment()["spec"]["template"]
    labels = {**template["metadata"]["labels"]} | ({SPEC_HASH_LABEL: spec_hash} if spec_hash else {})
    conditions = status.pop("conditions", [])
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels, **(meta or {})},
        "spec": {**template["spec"], **({"nodeName": node} if node else {})},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.7",
            "startTime": "2026-11-24T08:00:00Z",
            "conditions": [*conditions, {"type": "Ready", "status": str(ready), "lastTransitionTime": ready_at}],
            "containerStatuses": [container] if container else [],
            **status,
        },
    }


def seen(*pods, nodes=(READY_NODE,), item=None):
    objects = (deployment(len(pods)) if item is None else item,)
    return o.observe(Snapshot(objects, pods, nodes, "1"))[DEPLOYMENT]


def running(*, ready, started=True, restarts=0, last=None):
    return {
        "ready": ready,
        "started": started,
        "restartCount": restarts,
        "state": {"running": {"startedAt": "2026-11-24T08:01:00Z"}},
        "lastState": {"terminated": last} if last else {},
    }


def waiting(reason, message="", *, restarts=0, last=None):
    return {
        "ready": False,
        "started": False,
        "restartCount": restarts,
        "state": {"waiting": {"reason": reason, "message": message}},
        "lastState": {"terminated": last} if last else {},
    }


def test_a_ready_pod_settles_its_deployment():
    observed = seen(pod(ready=True, container=running(ready=True, restarts=2)))
    [first] = observed.pods
    assert (observed.ready, observed.settled, observed.reason, observed.generation) == (1, True, "", 4)
    assert (first.address, first.reason, first.restarts) == ("10.0.0.7:8000", o.RUNNING, 2)
    assert first.started_at.isoformat() == "2026-11-24T08:01:00+00:00"


CRASH = {"exitCode": 3, "reason": "Error", "message": "loading\nValueError: no such model\n\n"}


@pytest.mark.parametrize(
    ("container", "reason", "part"),
    [
        (waiting("ContainerCreating"), o.STARTING, "prepared"),
        (waiting("ErrImagePull", "not found"), o.IMAGE_PULL_FAILED, "not found"),
        (waiting("ImagePullBackOff", "denied"), o.IMAGE_PULL_FAILED, "denied"),
        (waiting("CreateContainerError", "port taken"), o.START_FAILED, "port taken"),
        (waiting("CrashLoopBackOff", restarts=4, last=CRASH), o.CRASH_LOOP, "ValueError: no such model"),
        (waiting("CrashLoopBackOff", restarts=4, last={"exitCode": 9}), o.CRASH_LOOP, "exit code 9"),
        (waiting("CrashLoopBackOff", restarts=1, last={"reason": "OOMKilled"}), o.OUT_OF_MEMORY, "memory"),
        ({"ready": False, "state": {"terminated": CRASH}}, o.CRASH_LOOP, "no such model"),
        (running(ready=False, started=False), o.STARTING, "loads"),
        (running(ready=False, started=False, restarts=1, last=CRASH), o.STARTING, "no such model"),
        (running(ready=False), o.PROBE_FAILED, "health check"),
        (None, o.STARTING, "prepared"),
    ],
)
def test_what_keeps_a_pod_from_being_ready_is_said(container, reason, part):
    observed = seen(pod(container=container))
    assert (observed.ready, observed.settled) == (0, False)
    assert observed.pods[0].reason == reason
    assert part in observed.pods[0].message
    assert observed.message == observed.pods[0].message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "0/8 nodes are available: 2 node(s) had untolerated taint(s), 6 Insufficient nvidia.com/gpu. "
            "preemption: 0/8 nodes are available",
            "not enough nvidia.com/gpu is free",
        ),
        (
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient moorage.dev/cpu-engine.",
            "moorage.dev/cpu-engine, cpu",
        ),
        ("0/8 nodes are available: 8 node(s) didn't match Pod's node affinity/selector.", "No node of this pool"),
        ("something else", "something else"),
    ],
)
def test_a_pod_that_fits_nowhere_names_the_scarce_resource(text, part):
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}
    observed = seen(pod(node=None, conditions=[scheduled], phase="Pending", podIP=""))
    assert observed.pods[0].reason == o.UNSCHEDULABLE
    assert part in observed.pods[0].message
    assert observed.pods[0].address == ""


@pytest.mark.parametrize("nodes", [(), (LOST_NODE,)])
def test_a_pod_of_a_lost_node_is_not_ready_whatever_it_said_last(nodes):
    observed = seen(pod(ready=True, container=running(ready=True)), nodes=nodes)
    assert (observed.ready, observed.pods[0].ready, observed.reason) == (0, False, o.NODE_LOST)


def nodes_of(zone, silent, count):
    """Nodes of a zone, the first of them silent."""
    return tuple(
        {**(LOST_NODE if number < silent else READY_NODE), "metadata": {"name": f"{zone}{number}", "labels": labels}}
        for labels in [{"topology.kubernetes.io/zone": zone}]
        for number in range(count)
    )


@pytest.mark.parametrize(
    ("nodes", "is_held"),
    [
        (nodes_of("a", 2, 3), False),
        (nodes_of("a", 3, 4), True),
        (nodes_of("a", 3, 6), False),
        (nodes_of("a", 3, 3), True),
        (nodes_of("a", 3, 3) + nodes_of("b", 0, 1), False),
        (nodes_of("a", 3, 4) + nodes_of("b", 0, 50), True),
        (nodes_of("a", 50, 60), False),
    ],
    ids=["two", "most of a zone", "half", "everything", "a whole zone", "most of one zone", "a large zone"],
)
def test_a_lost_pod_is_told_whether_kubernetes_will_replace_it(nodes, is_held):
    message = seen(pod(node="a0", ready=True, container=running(ready=True)), nodes=nodes).message
    assert ("replaces nothing" in message, "replaces it once" in message) == (is_held, not is_held)


def test_an_evicted_pod_says_why():
    observed = seen(pod(phase="Failed", reason="Evicted", message="The node was low on memory"))
    assert (observed.reason, observed.pods[0].message) == (
        o.EVICTED,
        "The node ended this replica: The node was low on memory",
    )


def test_a_pod_on_its_way_out_is_not_counted():
    leaving = pod("p2", ready=True, container=running(ready=True), meta={"deletionTimestamp": "2026-11-24T08:00:00Z"})
    staying = pod("p1", ready=True, container=running(ready=True))
    observed = seen(staying, leaving, item=deployment(1))
    assert (observed.ready, observed.settled, observed.reason) == (1, False, o.TERMINATING)


def test_an_old_template_does_not_settle():
    observed = seen(pod(ready=True, container=running(ready=True), spec_hash="old"))
    assert (observed.ready, observed.settled) == (1, False)


def test_an_apply_that_the_cluster_has_not_seen_does_not_settle():
    item = deployment(1, {"observedGeneration": 6})
    assert not seen(pod(ready=True, container=running(ready=True)), item=item).settled


def test_pods_without_their_deployment_stand_until_they_are_gone():
    snapshot = Snapshot((), (pod(),), (READY_NODE,), "1")
    observed = o.observe(snapshot)[DEPLOYMENT]
    assert (observed.generation, observed.replicas, observed.settled) == (0, 0, False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pods is forbidden: exceeded quota: tenant, requested: pods=1", o.QUOTA_EXCEEDED),
        ('violates PodSecurity "restricted:latest": privileged', o.REFUSED),
    ],
)
def test_pods_that_the_cluster_refuses_are_told_by_the_deployment(text, reason):
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": text}
    observed = seen(item=deployment(1, {"observedGeneration": 7, "conditions": [failure]}))
    assert observed.reason == reason
    assert text in observed.message


def test_objects_of_others_are_passed_over():
    meta = {"name": "x", "namespace": "y", "labels": {DEPLOYMENT_LABEL: "not-an-id"}}
    foreign = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {}}
    assert o.observe(Snapshot((foreign,), (), (), "1")) == {}


def test_a_shortened_line_and_an_ipv6_address_are_written_properly():
    other = ids.encode(ids.DEPLOYMENT, UUID(int=5))
    item = pod(container=waiting("ErrImagePull", "x" * 5000), podIP="fd00::7")
    item["metadata"]["labels"][DEPLOYMENT_LABEL] = other
    [first] = o.observe(Snapshot((), (item,), (READY_NODE,), "1"))[UUID(int=5)].pods
    assert first.address == "[fd00::7]:8000"
    assert len(first.message) < 400


def test_an_engine_that_just_got_up_is_not_blamed_before_its_first_check():
    observed = seen(pod(container=running(ready=False), ready_at="2026-11-24T08:01:00Z"))
    assert observed.reason == o.STARTING


def rank(number, **facts):
    """One pod of a group of two; number 0 leads."""
    item = pod(f"p-{number}", **facts)
    item["metadata"]["labels"] |= {
        ROLE_LABEL: "worker" if number else "leader",
        "leaderworkerset.sigs.k8s.io/group-index": "0",
    }
    item["metadata"]["annotations"] = {"leaderworkerset.sigs.k8s.io/size": "2"}
    return item


def test_a_group_is_one_replica_at_its_leaders_address():
    up = {"ready": True, "container": running(ready=True)}
    [replica] = seen(rank(1, podIP="10.0.0.8", **up), rank(0, **up)).pods
    assert (replica.name, replica.address, replica.ready) == ("p-0", "10.0.0.7:8000", True)


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (None, o.STARTING),
        ({"ready": False, "container": waiting("ImagePullBackOff", "no such image")}, o.IMAGE_PULL_FAILED),
        ({"ready": True, "container": running(ready=True), "node": "gone"}, o.NODE_LOST),
        ({"ready": True, "meta": {"deletionTimestamp": "2026-11-24T08:03:00Z"}}, o.TERMINATING),
    ],
    ids=["missing", "ill", "lost", "ending"],
)
def test_a_leader_is_not_ready_without_all_of_its_group(worker, reason):
    leader = rank(0, ready=True, container=running(ready=True))
    [replica] = seen(leader, *([rank(1, **worker)] if worker else [])).pods
    assert (replica.name, replica.ready, replica.reason) == ("p-0", False, reason)


def test_a_leader_that_waits_for_an_ill_worker_tells_of_the_worker():
    leader = rank(0, container=running(ready=False, started=False))
    worker = rank(1, node="", conditions=[{"type": "PodScheduled", "status": "False", "message": "Insufficient x/gpu"}])
    [replica] = seen(leader, worker).pods
    assert (replica.ready, replica.reason) == (False, o.UNSCHEDULABLE)
