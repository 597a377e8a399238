"""The next step towards a Deployment: never below its floor, never above its ceiling, and it arrives."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from k8s.desired import deployment_objects
from k8s.local import rollout
from tests.k8s.golden_cases import POOLS, workload

NOW = datetime(2026, 11, 24, 8, 0, 0, 500_000, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)


def deployment(*, replicas, surge, args=("/new",), recreate=False):
    item = deployment_objects(workload(replicas=replicas, surge=surge, args=args), POOLS["cpu-local"])[0]
    item["metadata"] |= {"uid": "d", "generation": 1}
    if recreate:
        item["spec"]["strategy"] = {"type": "Recreate"}
    return item


def ready(is_ready=True, since=LONG_AGO):
    return {"type": "Ready", "status": str(is_ready), "lastTransitionTime": rollout.instant(since)}


def pods(item, are_ready, prefix):
    made = []
    for index, is_ready in enumerate(are_ready):
        pod = rollout.new_pod(item, uid=f"{prefix}{index}", suffix=f"{prefix}{index}", now=NOW)
        pod["status"]["conditions"] = [ready(is_ready)]
        made.append(pod)
    return made


def ready_count(some):
    return sum(rollout.is_ready(pod) for pod in some)


flags = st.lists(st.booleans(), max_size=4)


@given(replicas=st.integers(0, 4), surge=st.booleans(), old=flags, new=flags)
def test_a_rolling_step_keeps_between_floor_and_ceiling(replicas, surge, old, new):
    target = deployment(replicas=replicas, surge=surge)
    before = pods(deployment(replicas=replicas, surge=surge, args=("/old",)), old, "o")
    current = [*before, *pods(target, new, "n")]
    step = rollout.plan(target, current, NOW)
    left = [pod for pod in current if pod not in step.end]
    assert step.create == 0 or len(current) + step.create <= replicas + surge
    assert ready_count(left) >= min(ready_count(current), replicas - (not surge))
    if ready_count(current) < replicas - (not surge):
        assert not [pod for pod in step.end if pod in before and rollout.is_ready(pod)]


@given(replicas=st.integers(0, 4), surge=st.booleans(), recreate=st.booleans(), old=flags, new=flags)
def test_steps_arrive_when_new_engines_get_ready_and_then_stop(replicas, surge, recreate, old, new):
    target = deployment(replicas=replicas, surge=surge, recreate=recreate)
    current = pods(deployment(replicas=replicas, surge=surge, args=("/old",)), old, "o") + pods(target, new, "n")
    for turn in range(20):
        step = rollout.plan(target, current, NOW)
        current = [pod for pod in current if pod not in step.end]
        current += pods(target, [True] * step.create, f"t{turn}-")
        for pod in current:
            if pod["metadata"]["labels"][rollout.TEMPLATE_HASH_LABEL] == rollout.template_hash(target):
                pod["status"]["conditions"] = [ready()]
    assert len(current) == replicas
    assert rollout.plan(target, current, NOW) == rollout.Plan(0, ())
    assert ready_count(current) == replicas


def test_recreate_waits_until_the_old_ones_are_gone():
    target = deployment(replicas=1, surge=False, recreate=True)
    [old] = pods(deployment(replicas=1, surge=False, args=("/old",)), [True], "o")
    assert rollout.plan(target, [old], NOW) == rollout.Plan(0, (old,))
    leaving = rollout.ended(old, grace_s=30, now=NOW)
    assert rollout.plan(target, [leaving], NOW) == rollout.Plan(0, ())
    assert rollout.plan(target, [], NOW).create == 1


def test_an_old_engine_stays_until_the_new_one_has_been_ready_for_as_long_as_it_takes_to_prove_itself():
    target = deployment(replicas=1, surge=True)
    [old] = pods(deployment(replicas=1, surge=True, args=("/old",)), [True], "o")
    [new] = pods(target, [True], "n")
    wanted = timedelta(seconds=target["spec"]["minReadySeconds"])
    for early, ended in ((timedelta(seconds=1), ()), (timedelta(), (old,))):
        new["status"]["conditions"] = [ready(since=NOW - wanted + early)]
        assert rollout.plan(target, [old, new], NOW).end == ended
    status = rollout.deployment_status(target, [new], NOW - timedelta(seconds=1))
    assert (status["readyReplicas"], status["availableReplicas"]) == (1, 0)


def test_a_second_order_to_end_only_shortens_the_grace():
    [pod] = pods(deployment(replicas=1, surge=False), [True], "n")
    first = rollout.ended(pod, grace_s=30, now=NOW)
    assert first["metadata"]["deletionTimestamp"] == "2026-11-24T08:00:31Z"
    assert rollout.ended(first, grace_s=60, now=NOW) is first
    assert rollout.ended(first, grace_s=0, now=NOW)["metadata"]["deletionTimestamp"] == "2026-11-24T08:00:01Z"


def test_a_transition_time_moves_only_with_its_status():
    first = rollout.condition({}, "Ready", True, "Yes", "No", NOW)
    later = NOW.replace(hour=9)
    assert rollout.condition({"conditions": [first]}, "Ready", True, "Yes", "No", later) == first
    assert rollout.condition({"conditions": [first]}, "Ready", False, "Yes", "No", later)["lastTransitionTime"] == (
        "2026-11-24T09:00:00Z"
    )
