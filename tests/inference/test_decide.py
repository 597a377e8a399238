"""Decisions: one by one, and convergence from any state that a crash may have left."""

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.core import conditions as c
from inference.core import decide as do
from inference.core.conditions import Condition
from inference.core.decide import decide
from inference.core.rows import DELETED, PENDING, Fault, ReplicaRow
from inference.core.words import Finalizer, ReplicaState
from k8s.observe import Observed
from tests.inference.values import pod
from tests.inference.world import DEPLOYMENT, World, deployment_row, endpoint_row

PASSES = 8


def kinds(decision: do.Decision) -> list[type]:
    return [type(action) for action in decision.actions]


def condition(decision: do.Decision, name: str) -> Condition:
    return next(item for item in decision.conditions if item.type == name)


def running(**changes) -> World:
    world = World(endpoint_row(deployment_row(**changes)))
    for _ in range(PASSES):
        world.one_pass()
    return world


def test_a_new_endpoint_gets_its_route_and_its_accelerators_before_anything_runs():
    decision = decide(endpoint_row())
    assert kinds(decision) == [do.ProgramRoute, do.Reserve]
    assert condition(decision, c.CAPACITY_RESERVED).reason == "NoRoom"


def test_with_accelerators_reserved_the_manifests_are_applied():
    decision = decide(endpoint_row(deployment_row(reserved=2)))
    apply = next(action for action in decision.actions if isinstance(action, do.Apply))
    assert [item["kind"] for item in apply.objects()][-1] == "Deployment"
    assert apply.objects()[-1]["spec"]["replicas"] == 1


def test_an_endpoint_in_sync_asks_for_nothing():
    world = running()
    decision = decide(world.row)
    assert decision.actions == ()
    assert decision.retry_s is None
    assert condition(decision, c.READY) == Condition(c.READY, c.TRUE, c.SERVING, "1 of 1 replicas serve")
    assert decision.serving == 1


def test_a_pod_proves_itself_before_it_serves():
    world = World(endpoint_row())
    while not world.deployment.replicas:
        world.one_pass()
    decision = decide(world.row)
    assert kinds(decision) == [do.Probe]
    assert condition(decision, c.READY).reason == "Proving"
    assert decision.serving == 0


def test_a_replica_that_was_lost_from_sight_goes_on_serving_and_proves_itself_again():
    world = running()
    world.set(replicas=tuple(replace(item, proven=False) for item in world.deployment.replicas))
    decision = decide(world.row)
    assert kinds(decision) == [do.Probe]
    assert decision.serving == 1


def test_half_the_room_runs_half_the_replicas():
    world = World(endpoint_row(deployment_row(wanted=4)), room=5)
    for _ in range(PASSES):
        decision = world.one_pass()
    assert (world.deployment.reserved, world.deployment.seen.replicas) == (4, 2)
    assert kinds(decision) == [do.Reserve]
    world.room = 4
    for _ in range(PASSES):
        world.one_pass()
    assert world.deployment.seen.replicas == 4
    assert decide(world.row).actions == ()


def test_without_money_nothing_runs_and_the_condition_says_why():
    world = World(endpoint_row(deployment_row(held=False, fault=Fault("CreditExhausted", "top up"))), credit=False)
    for _ in range(PASSES):
        decision = world.one_pass()
    assert world.deployment.seen is None
    assert condition(decision, c.CAPACITY_RESERVED) == Condition(
        c.CAPACITY_RESERVED, c.FALSE, "CreditExhausted", "top up"
    )


def test_a_pause_ends_pods_and_then_gives_accelerators_and_money_back():
    world = running()
    world.row = replace(world.row, stop=c.PAUSED, generation=2)
    first = decide(world.row)
    assert kinds(first) == [do.ProgramRoute, do.Apply]
    assert condition(first, c.READY).reason == c.PAUSING
    for _ in range(PASSES):
        world.one_pass()
    assert (world.deployment.reserved, world.deployment.held, world.room) == (0, False, 8)
    last = decide(world.row)
    assert last.actions == ()
    assert condition(last, c.READY).reason == c.PAUSED
    assert last.retry_s is None


def test_accelerators_stay_reserved_while_a_pod_still_sits_on_them():
    world = running()
    world.row = replace(world.row, stop=c.PAUSED, generation=2)
    leaving = replace(world.deployment.seen.pods[0], terminating=True)
    world.set(seen=replace(world.deployment.seen, replicas=0, pods=(leaving,)))
    assert do.Reserve not in kinds(decide(world.row))


def test_drift_is_repaired():
    world = running()
    world.set(seen=replace(world.deployment.seen, replicas=7))
    assert kinds(decide(world.row)) == [do.Apply]


def test_an_object_that_somebody_deleted_comes_back():
    world = running()
    world.set(seen=None, replicas=())
    assert do.Apply in kinds(decide(world.row))


def test_stale_facts_repair_nothing():
    world = running()
    world.set(seen=replace(world.deployment.seen, replicas=7), fresh=False)
    assert decide(world.row).actions == ()


def test_a_delete_undoes_everything_in_order():
    world = running()
    world.row = replace(world.row, deleting=True, generation=2)
    seen = []
    while True:
        decision = world.one_pass()
        seen.append(decision.finalizers)
        if decision.archived:
            break
    assert seen[0] == tuple(Finalizer)
    assert seen == sorted(seen, key=len, reverse=True)
    assert (world.deployment.reserved, world.deployment.held, world.row.routed) == (0, False, "")


def test_a_delete_waits_for_facts_that_are_younger_than_itself():
    world = running()
    world.row = replace(world.row, deleting=True, routed="")
    world.set(applied=DELETED, fresh=False, seen=None, replicas=())
    assert Finalizer.WORKLOAD in decide(world.row).finalizers


def test_an_object_that_comes_back_after_the_delete_is_deleted_again():
    world = running()
    world.row = replace(world.row, deleting=True, routed="")
    world.set(applied=DELETED)
    assert do.DeleteWorkload in kinds(decide(world.row))


def test_an_endpoint_that_never_ran_is_archived_at_once():
    decision = decide(endpoint_row(deployment_row(held=False), deleting=True))
    assert decision.archived


def test_a_failed_update_leaves_the_old_replica_serving_and_says_so():
    world = running()
    seen = world.deployment.seen
    broken = pod(UUID(int=77), ready=False, reason="CrashLoop", message="it ends", spec_hash="new")
    world.set(seen=replace(seen, settled=False, pods=(*seen.pods, broken)))
    world.row = replace(world.row, generation=2, observed_generation=1)
    decision = decide(world.row)
    assert condition(decision, c.READY).reason == c.UPDATE_FAILED
    assert decision.serving == 1


def test_a_lost_replica_is_degraded_and_a_lost_only_one_recovers():
    two = running(wanted=2)
    pods = two.deployment.seen.pods
    two.set(seen=replace(two.deployment.seen, settled=False, pods=(pods[0], replace(pods[1], ready=False))))
    assert condition(decide(two.row), c.READY).reason == c.DEGRADED
    one = running()
    lost = replace(one.deployment.seen.pods[0], ready=False, reason="NodeLost")
    one.set(seen=replace(one.deployment.seen, settled=False, pods=(lost,)))
    assert condition(decide(one.row), c.READY).reason == c.RECOVERING


@pytest.mark.parametrize(
    ("pods", "name", "status", "reason"),
    [
        (
            (pod(UUID(int=5), ready=False, node="", reason="Unschedulable", message="no gpu"),),
            c.SCHEDULED,
            "False",
            "Unschedulable",
        ),
        (
            (pod(UUID(int=5), ready=False, reason="ImagePullFailed"),),
            c.ENGINE_READY,
            "False",
            "ImagePullFailed",
        ),
        ((pod(UUID(int=5), ready=False),), c.ENGINE_READY, "Unknown", "Starting"),
        ((pod(UUID(int=5), ready=False),), c.SCHEDULED, "True", "Scheduled"),
        ((), c.SCHEDULED, "Unknown", "NoPodYet"),
    ],
)
def test_facts_about_pods_become_conditions(pods, name, status, reason):
    seen = Observed(DEPLOYMENT, 1, "hash", 1, 0, False, "", "", pods)
    row = deployment_row(reserved=2, applied="digest", fresh=True, seen=seen)
    found = condition(decide(endpoint_row(row)), name)
    assert (found.status, found.reason) == (status, reason)


def test_a_refused_manifest_is_no_longer_accepted():
    row = deployment_row(reserved=2, applied=PENDING, fault=Fault("ManifestRefused", "spec.foo is unknown"))
    assert condition(decide(endpoint_row(row)), c.ACCEPTED).status == c.FALSE


PODS = st.lists(
    st.builds(
        lambda uid, ready, terminating, spec_hash: pod(
            UUID(int=uid), ready=ready, terminating=terminating, spec_hash=spec_hash
        ),
        st.integers(10, 20),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["hash", "other"]),
    ),
    max_size=4,
    unique_by=lambda item: item.uid,
)
SEEN = st.none() | st.builds(
    # Generation 0: the object is gone and its last pods are ending.
    lambda generation, replicas, pods: Observed(
        DEPLOYMENT, generation, "hash", replicas if generation else 0, 0, False, "", "", tuple(pods)
    ),
    st.integers(0, 5),
    st.integers(0, 4),
    PODS,
)
ROWS = st.lists(
    st.builds(
        lambda uid, state, proven: ReplicaRow(UUID(int=uid), state, proven=proven and state is ReplicaState.SERVING),
        st.integers(10, 20),
        st.sampled_from([ReplicaState.PROVING, ReplicaState.SERVING]),
        st.booleans(),
    ),
    max_size=4,
    unique_by=lambda item: item.pod_uid,
)


@st.composite
def worlds(draw) -> World:
    reserved = 2 * draw(st.integers(0, 4))
    row = deployment_row(
        wanted=draw(st.integers(0, 4)),
        paid=draw(st.booleans()),
        reserved=reserved,
        held=draw(st.booleans()),
        # What a crash leaves: never applied, half applied, applied something older, deleted.
        applied=draw(st.sampled_from(["", PENDING, "older", DELETED])),
        fresh=draw(st.booleans()),
        seen=draw(SEEN),
        replicas=tuple(draw(ROWS)),
    )
    if not row.applied:
        row = replace(row, seen=None, replicas=())
    endpoint = endpoint_row(
        row,
        generation=5,
        observed_generation=draw(st.integers(0, 5)),
        stop=draw(st.sampled_from(["", c.PAUSED, c.SUSPENDED])),
        deleting=draw(st.booleans()),
        routed=draw(st.sampled_from(["", "4:run", "5:run", "5:Paused"])),
    )
    return World(endpoint, room=8 - reserved)


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_from_any_state_the_endpoint_converges_and_then_asks_for_nothing(world):
    for _ in range(PASSES):
        world.one_pass()
    final = decide(world.row)
    assert final.actions == ()
    assert final == decide(replace(world.row, conditions=final.conditions))
    wanted = 0 if world.row.stop or world.row.deleting else world.deployment.workload.replicas
    if world.row.deleting:
        assert final.archived
        assert world.deployment.seen is None
    else:
        assert (world.deployment.seen.replicas if world.deployment.seen else 0) == wanted
        assert final.serving == wanted
    assert world.deployment.reserved == wanted * 2
    assert world.room == 8 - world.deployment.reserved
    assert world.deployment.held == (bool(wanted) if world.deployment.paid else world.deployment.held)


@settings(max_examples=200, deadline=None)
@given(worlds(), st.integers(0, 8))
def test_a_pool_is_never_overdrawn_on_the_way(world, room):
    world.room = room
    for _ in range(PASSES):
        world.one_pass()
        assert world.room >= 0


def test_drift_in_facts_that_are_too_old_to_act_on_is_looked_at_again():
    world = running()
    world.set(fresh=False, seen=replace(world.deployment.seen, owned="another's"))
    decision = decide(world.row)
    assert decision.actions == ()
    assert decision.retry_s is not None
    world.set(fresh=True)
    assert kinds(decide(world.row)) == [do.Apply]
