"""A replica's life and what is billed of it."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.core import facts
from inference.core.replicas import ALIVE, TO, Change, Life, follow, slot
from inference.core.words import ReplicaState
from k8s.observe import Observed
from tests.inference.values import NOW, pod

UID = UUID(int=7)


def at(seconds: float):
    return NOW + timedelta(seconds=seconds)


def serving(*, alive_s: float = 0, was_ready: bool = True) -> Life:
    """A replica that serves since NOW."""
    return Life(UID, ReplicaState.SERVING, NOW, at(alive_s), was_ready)


def one(life: Life, pods: dict, *, as_of_s: float = 100, proof_s: float = 90, stopped_s: float | None = None):
    stopped_at = at(stopped_s) if stopped_s is not None else None
    return follow([life], pods, as_of=at(as_of_s), proof_at=at(proof_s), stopped_at=stopped_at)


def test_a_vanished_pod_is_billed_to_its_last_proof_of_life():
    assert one(serving(), {}) == [Change(UID, ReplicaState.GONE, at(90), TO, at(90))]


def test_a_pause_before_the_last_proof_ends_the_bill_earlier():
    assert one(serving(), {}, stopped_s=60)[0].fact_at == at(60)


def test_a_pause_after_the_last_proof_adds_nothing():
    assert one(serving(), {}, stopped_s=95)[0].fact_at == at(90)


def test_a_pod_that_was_not_ready_any_more_is_billed_to_when_it_was():
    assert one(serving(alive_s=30, was_ready=False), {})[0].fact_at == at(30)


def test_a_pod_on_its_way_out_has_ended():
    assert one(serving(), {UID: pod(UID, terminating=True)})[0].fact == TO


def test_a_pod_that_a_stop_puts_on_its_way_out_is_billed_to_the_stop():
    leaving = {UID: pod(UID, terminating=True)}
    assert one(serving(), leaving, stopped_s=95)[0].fact_at == at(95)
    assert one(serving(), leaving, stopped_s=60)[0].fact_at == at(60)
    assert one(serving(alive_s=30, was_ready=False), leaving, stopped_s=95)[0].fact_at == at(30)


def test_a_pod_that_never_served_bills_nothing():
    life = Life(UID, ReplicaState.PROVING, None, None, was_ready=True)
    assert one(life, {}) == [Change(UID, ReplicaState.GONE, None)]


def test_a_living_pod_is_proven_once_per_slot():
    assert one(serving(), {UID: pod(UID)}, as_of_s=100) == []
    changes = one(serving(), {UID: pod(UID)}, as_of_s=301)
    assert changes == [Change(UID, ReplicaState.SERVING, at(301), ALIVE, at(301))]


def test_a_stopped_endpoint_proves_no_more():
    assert one(serving(), {UID: pod(UID)}, as_of_s=301, stopped_s=200) == []


def test_a_pod_that_stops_answering_ends_its_span_at_its_last_proof_and_proves_itself_anew():
    assert one(serving(), {UID: pod(UID, ready=False)}) == [Change(UID, ReplicaState.PROVING, at(90), TO, at(90))]
    waiting = Life(UID, ReplicaState.PROVING, None, at(90), was_ready=False)
    assert one(waiting, {UID: pod(UID, ready=False)}, as_of_s=700) == []
    assert one(waiting, {UID: pod(UID)}, as_of_s=700) == []


def test_an_engine_that_began_anew_between_two_looks_was_away_in_between():
    life = replace(serving(), restarted=True)
    assert one(life, {UID: pod(UID)}) == [Change(UID, ReplicaState.PROVING, at(90), TO, at(90))]


def test_a_pod_out_of_sight_for_longer_than_a_slot_is_billed_to_its_last_proof_and_serves_on():
    assert one(serving(), {UID: pod(UID)}, as_of_s=391) == [Change(UID, ReplicaState.SERVING, at(90), TO, at(90))]
    lost = Life(UID, ReplicaState.SERVING, None, at(90), was_ready=True)
    assert one(lost, {UID: pod(UID)}, as_of_s=1000) == []
    assert one(lost, {UID: pod(UID, ready=False)}) == [Change(UID, ReplicaState.PROVING, at(90))]
    assert one(lost, {}) == [Change(UID, ReplicaState.GONE, at(90))]


def test_a_stop_before_the_last_proof_ends_the_span_of_a_pod_that_answers_no_more():
    assert one(serving(), {UID: pod(UID, ready=False)}, stopped_s=60)[0].fact_at == at(60)


@settings(deadline=None)
@given(
    proof_s=st.floats(0, 1000),
    stopped_s=st.none() | st.floats(-100, 1000),
    alive_s=st.floats(0, 1000),
    was_ready=st.booleans(),
)
def test_the_bill_never_runs_past_a_proof_or_the_stop_nor_before_the_start(proof_s, stopped_s, alive_s, was_ready):
    change = one(serving(alive_s=alive_s, was_ready=was_ready), {}, proof_s=proof_s, stopped_s=stopped_s)[0]
    assert change.fact_at >= NOW
    assert change.fact_at <= at(max(proof_s, alive_s))
    assert stopped_s is None or change.fact_at <= max(NOW, at(stopped_s))


def test_slots_are_five_minutes():
    assert slot(at(300)) == slot(NOW) + 1


@pytest.mark.parametrize(
    ("state", "ready", "stopped", "expected"),
    [
        (ReplicaState.PROVING, True, False, ["proving"]),
        (ReplicaState.SERVING, True, False, ["serving"]),
        (ReplicaState.SERVING, True, True, ["draining"]),
        (ReplicaState.SERVING, False, False, []),
        (ReplicaState.GONE, True, False, []),
    ],
)
def test_gateways_are_told_what_a_pod_is_for(state, ready, stopped, expected):
    observed = Observed(UUID(int=1), 1, "hash", 1, 1, True, "", "", (pod(UID, ready=ready),))
    records = facts.pod_records(observed, {UID: state}, stopped=stopped)
    assert [record.state for record in records] == expected


def test_facts_survive_storage():
    observed = Observed(UUID(int=1), 1, "hash", 1, 1, True, "", "", (pod(UID), pod(UUID(int=8), started_at=None)))
    assert facts.from_json(facts.to_json(observed)) == observed
