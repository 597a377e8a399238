"""What any `Cluster` must do. Every implementation runs through the same tests."""

import copy
import time
from itertools import islice
from uuid import UUID

import pytest

from k8s.cluster import Conflict, Invalid, Ref
from k8s.desired import deployment_objects, deployment_refs, namespace_of
from k8s.observe import UNSCHEDULABLE
from tests.k8s.harness import DEPLOYMENT, POOL, SLOT, TENANT, TENANT_OBJECTS, ask, spec, until

REFS = deployment_refs(TENANT, DEPLOYMENT)
# An old engine stays for the seconds in which a new one proves itself.
ROLLED_S = 60.0


@pytest.fixture(params=["local"])
def running(request, place):
    """A place with a node that has room for two engines."""
    return place.start()


def apply(running, **changes):
    results = running.cluster.apply(deployment_objects(spec(**changes), POOL))
    assert [result.error for result in results] == [None] * len(results)
    return results


def decided(running):
    """What was asked for, by name; controllers may still be writing what became of it."""
    return {Ref.of(item): (item["metadata"]["labels"], item.get("spec")) for item in running.cluster.list().objects}


def test_applying_the_same_again_changes_nothing(running):
    apply(running, replicas=0)
    running.ready(0)
    before = decided(running)
    apply(running, replicas=0)
    running.cluster.apply(TENANT_OBJECTS)
    assert decided(running) == before


def test_a_drifted_object_is_repaired_by_the_next_apply(running):
    [wanted] = deployment_objects(spec(replicas=0), POOL)
    drifted = copy.deepcopy(wanted)
    drifted["spec"]["progressDeadlineSeconds"] = 70
    running.cluster.apply([drifted])
    [repaired] = running.cluster.apply([wanted])
    assert repaired.error is None
    [stored] = [item for item in running.cluster.list().objects if item["kind"] == "Deployment"]
    assert stored["spec"]["progressDeadlineSeconds"] == wanted["spec"]["progressDeadlineSeconds"]
    assert stored["metadata"]["generation"] == 2


def test_one_bad_object_among_good_ones_is_refused_alone(running):
    strange = {"apiVersion": "v1", "kind": "Mystery", "metadata": {"name": "a", "namespace": namespace_of(TENANT)}}
    good, bad, also_good = running.cluster.apply(
        [*deployment_objects(spec(replicas=0), POOL), strange, TENANT_OBJECTS[0]]
    )
    assert good.error is also_good.error is None
    assert isinstance(bad.error, Invalid)
    assert "Mystery" in bad.error.message


def test_an_unknown_field_is_refused_by_its_name(running):
    [item] = deployment_objects(spec(), POOL)
    item["spec"]["template"]["spec"]["hostMystery"] = True
    [result] = running.cluster.apply([item])
    assert isinstance(result.error, Invalid)
    assert "hostMystery" in result.error.message


def test_an_object_without_its_namespace_is_refused(running):
    stranger = spec(tenant_id=UUID("0193a000-0000-7000-8000-00000000ffff"))
    [result] = running.cluster.apply(deployment_objects(stranger, POOL))
    assert isinstance(result.error, Invalid)
    assert namespace_of(stranger.tenant_id) in result.error.message


def test_a_selector_may_not_change(running):
    apply(running, replicas=0)
    [item] = deployment_objects(spec(replicas=0), POOL)
    item["spec"]["selector"]["matchLabels"] = {"moorage.dev/pool": "cpu-local"}
    [result] = running.cluster.apply([item])
    assert isinstance(result.error, Invalid)
    assert "selector" in result.error.message


def test_an_apply_from_an_old_version_is_a_conflict(running):
    apply(running, replicas=0)
    [item] = deployment_objects(spec(replicas=0, generation=2), POOL)
    item["metadata"]["resourceVersion"] = "1"
    [result] = running.cluster.apply([item])
    assert isinstance(result.error, Conflict)


def test_deleting_what_is_not_there_is_fine(running):
    running.cluster.delete(REFS, grace_s=None)
    running.cluster.delete([Ref("v1", "Pod", "nowhere", "nothing")], grace_s=0)


def test_changes_tell_creation_update_and_removal_in_a_moment(running):
    since = running.cluster.list().version
    changes = running.cluster.changes(since, timeout_s=10)
    apply(running, replicas=0)
    began = time.monotonic()
    first = next(change for change in changes if change.object["kind"] == "Deployment")
    assert time.monotonic() - began < 0.2
    assert not first.gone
    running.ready(0)
    running.cluster.delete(REFS, grace_s=0)
    gone = next(change for change in changes if change.gone)
    assert Ref.of(gone.object) == REFS[0]
    assert list(running.cluster.changes(gone.version, timeout_s=0.3)) == []


def test_changes_go_on_from_any_change_without_a_gap(running):
    since = running.cluster.list().version
    apply(running, replicas=0)
    running.ready(0)
    running.cluster.delete(REFS, grace_s=0)
    versions = []
    for change in running.cluster.changes(since, timeout_s=10):
        versions.append(change.version)
        if change.gone:
            break
    for done in range(1, len(versions)):
        rest = islice(running.cluster.changes(versions[done - 1], timeout_s=10), len(versions) - done)
        assert [change.version for change in rest] == versions[done:]


def test_changes_from_an_unknown_version_end_at_once(running):
    began = time.monotonic()
    assert list(running.cluster.changes("999999", timeout_s=5)) == []
    assert time.monotonic() - began < 1


def test_two_replicas_answer_at_two_addresses(running):
    apply(running, replicas=2)
    pods = running.ready(2)
    assert len({pod.address for pod in pods}) == 2
    assert len({ask(pod.address)["pid"] for pod in pods}) == 2


def test_scaling_keeps_the_engines_that_run(running):
    apply(running)
    [first] = running.ready()
    apply(running, replicas=2, generation=2)
    assert first.uid in {pod.uid for pod in running.ready(2)}
    apply(running, replicas=1, generation=3)
    [last] = running.ready(1)
    assert last.restarts == 0
    assert running.seen().generation == 3


def test_the_log_gives_the_last_lines(running):
    apply(running)
    [pod] = running.ready()
    assert running.log(1) == f"starting {pod.address.partition(':')[0]}\n"


def test_a_deleted_deployment_takes_its_pods_along(running):
    apply(running, fake={"child": True})
    [pod] = running.ready()
    running.cluster.delete(REFS, grace_s=None)
    until(lambda: not running.cluster.list().pods)
    with pytest.raises(OSError, match="refused"):
        ask(pod.address)


def test_a_deleted_namespace_takes_everything_along(running):
    apply(running)
    running.ready()
    namespace = Ref("v1", "Namespace", "", namespace_of(TENANT))
    running.cluster.delete([namespace], grace_s=0)
    until(lambda: not running.cluster.list().pods)

    def left():
        refs = map(Ref.of, running.cluster.list().objects)
        return [ref for ref in refs if ref == namespace or ref.namespace == namespace.name]

    until(lambda: not left())


def test_a_deleted_pod_is_replaced(running):
    apply(running)
    [first] = running.ready()
    running.cluster.delete([Ref("v1", "Pod", namespace_of(TENANT), first.name)], grace_s=0)
    until(lambda: running.pods() and first.uid not in {pod.uid for pod in running.pods()})
    [second] = running.ready()
    assert second.address != first.address


def test_a_pod_without_room_names_what_is_short_and_runs_when_there_is_room(running):
    apply(running, replicas=2)
    running.ready(2)
    other = UUID("0193a000-0000-7000-8000-000000000099")
    apply(running, deployment_id=other)
    [waiting] = until(lambda: [pod for pod in running.pods(other) if pod.reason == UNSCHEDULABLE])
    assert SLOT in waiting.message
    running.cluster.delete(REFS, grace_s=0)
    [pod] = running.ready(1, other)
    assert pod.uid == waiting.uid


def test_a_surging_update_keeps_the_old_engine_until_the_new_one_is_ready(running):
    apply(running, surge=True)
    [old] = running.ready()
    apply(running, surge=True, generation=2, fake={"load_s": 1})
    until(lambda: len(running.pods()) == 2)
    assert ask(old.address)["pid"]
    [new] = running.ready(timeout_s=ROLLED_S)
    assert new.uid != old.uid
    assert new.spec_hash == running.seen().spec_hash


def test_an_update_that_never_gets_ready_leaves_the_old_engine_serving(running):
    apply(running, surge=True)
    [old] = running.ready()
    apply(running, surge=True, generation=2, fake={"crash": 3})
    until(lambda: any(pod.reason == "CrashLoop" for pod in running.pods()))
    time.sleep(0.5)
    assert next(pod for pod in running.pods() if pod.uid == old.uid).ready
    assert not running.seen().settled
    assert "cannot load the model" in running.seen().message


def test_an_update_without_surge_ends_the_old_engine_first(running):
    apply(running, replicas=2)
    before = running.ready(2)
    apply(running, replicas=2, generation=2, fake={"load_s": 0.1})
    after = running.ready(2, timeout_s=ROLLED_S)
    assert not {pod.uid for pod in before} & {pod.uid for pod in after}
