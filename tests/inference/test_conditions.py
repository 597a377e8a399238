"""The customer's word: each of the sixteen phases, from conditions alone."""

from datetime import timedelta

import pytest

from inference.core import conditions as c
from inference.core.conditions import Condition, from_json, phase, to_json
from inference.core.words import Phase
from tests.inference.values import NOW

FLAGS = {"paused": False, "suspended": False, "deleting": False, "archived": False, "current": True}


def status(**changes: tuple[str, str]) -> list[Condition]:
    """All conditions true and serving, but for those named by `Type=(status, reason)`."""
    found = dict.fromkeys(c.TYPES, (c.TRUE, "Fine")) | {c.READY: (c.TRUE, c.SERVING)} | changes
    return [Condition(name, *found[name]) for name in c.TYPES]


def unready(reason: str = "Waiting", **changes: tuple[str, str]) -> list[Condition]:
    return status(Ready=(c.FALSE, reason), **changes)


TABLE = [
    (Phase.REQUESTED, [], {}),
    (Phase.WAITING_CAPACITY, unready(CapacityReserved=(c.FALSE, "NoRoom")), {}),
    (Phase.WAITING_CAPACITY, unready(Scheduled=(c.FALSE, "Unschedulable")), {}),
    (Phase.PROVISIONING, unready(Scheduled=(c.UNKNOWN, "NoPodYet"), EngineReady=(c.UNKNOWN, "NoPodYet")), {}),
    (Phase.PROVISIONING, unready(c.PAUSED, CapacityReserved=(c.FALSE, c.PAUSED)), {}),
    (Phase.LOADING, unready(EngineReady=(c.UNKNOWN, "Starting")), {}),
    (Phase.LOADING, unready("Proving"), {}),
    (Phase.RUNNING, status(), {}),
    (Phase.DEGRADED, status(Ready=(c.TRUE, c.DEGRADED)), {}),
    (Phase.DEGRADED, unready(c.RECOVERING, EngineReady=(c.UNKNOWN, "NodeLost")), {}),
    (Phase.UPDATING, status(Ready=(c.TRUE, c.UPDATING)), {}),
    (Phase.UPDATING, status(), {"current": False}),
    (Phase.UPDATE_FAILED, status(Ready=(c.TRUE, c.UPDATE_FAILED)), {}),
    (Phase.SCALED_TO_ZERO, unready(c.SCALED_TO_ZERO), {}),
    (Phase.WAKING, unready(c.WAKING, EngineReady=(c.UNKNOWN, "Starting")), {}),
    (Phase.PAUSING, unready(c.PAUSING), {"paused": True}),
    (Phase.PAUSING, status(), {"paused": True}),
    (Phase.PAUSED, unready(c.PAUSED), {"paused": True}),
    (Phase.SUSPENDED, unready(c.SUSPENDED), {"suspended": True}),
    (Phase.FAILED, unready(Accepted=(c.FALSE, "ManifestRefused")), {}),
    (Phase.FAILED, unready(EngineReady=(c.FALSE, "CrashLoop")), {}),
    (Phase.DELETING, status(), {"deleting": True}),
    (Phase.DELETED, status(), {"deleting": True, "archived": True}),
]


@pytest.mark.parametrize(("word", "conditions", "flags"), TABLE)
def test_conditions_give_the_phase(word, conditions, flags):
    assert phase(conditions, **{**FLAGS, **flags}) is word


def test_the_table_knows_every_phase():
    assert {word for word, _, _ in TABLE} == set(Phase)


def test_an_unchanged_condition_keeps_its_instant():
    stored = to_json(status(), [], NOW)
    later = to_json(status(Ready=(c.FALSE, "Waiting")), stored, NOW + timedelta(hours=1))
    assert later[:-1] == stored[:-1]
    assert later[-1]["at"] == (NOW + timedelta(hours=1)).isoformat()


def test_conditions_survive_storage():
    assert list(from_json(to_json(status(), [], NOW))) == status()
