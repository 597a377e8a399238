"""Conditions of an endpoint and the customer's word derived from them. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from inference.core.words import Phase
from k8s import observe

ACCEPTED, CAPACITY_RESERVED, WEIGHTS_CACHED = "Accepted", "CapacityReserved", "WeightsCached"
SCHEDULED, ENGINE_READY, ROUTE_PROGRAMMED, READY = "Scheduled", "EngineReady", "RouteProgrammed", "Ready"
TYPES = (ACCEPTED, CAPACITY_RESERVED, WEIGHTS_CACHED, SCHEDULED, ENGINE_READY, ROUTE_PROGRAMMED, READY)
TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"

# Reasons of Ready that the phase reads.
SERVING, DEGRADED, UPDATING, UPDATE_FAILED = "Serving", "Degraded", "Updating", "UpdateFailed"
RECOVERING, WAKING, SCALED_TO_ZERO = "Recovering", "Waking", "ScaledToZero"
PAUSED, PAUSING, SUSPENDED, DELETING = "Paused", "Pausing", "Suspended", "Deleting"

NOT_IN_CATALOGUE = "NotInCatalogue"

# Facts about a pod that time alone does not heal.
LASTING = frozenset(
    {
        observe.IMAGE_PULL_FAILED,
        observe.START_FAILED,
        observe.OUT_OF_MEMORY,
        observe.CRASH_LOOP,
        observe.REFUSED,
    }
)
SCARCE = frozenset({observe.UNSCHEDULABLE, observe.QUOTA_EXCEEDED})


@dataclass(frozen=True, slots=True)
class Condition:
    """`status` is True, False or Unknown as text; `reason` is stable API, `message` for people."""

    type: str
    status: str
    reason: str
    message: str = ""


def to_json(
    conditions: Iterable[Condition], before: Sequence[Mapping[str, Any]], now: datetime
) -> list[dict[str, Any]]:
    """Conditions as stored; `at` is when the status last changed: an unchanged one keeps its bytes."""
    old = {item["type"]: item for item in before}
    return [
        {
            "type": item.type,
            "status": item.status,
            "reason": item.reason,
            "message": item.message,
            "at": old[item.type]["at"]
            if item.type in old and old[item.type]["status"] == item.status
            else now.isoformat(),
        }
        for item in conditions
    ]


def from_json(stored: Iterable[Mapping[str, Any]]) -> tuple[Condition, ...]:
    """The conditions that `to_json` wrote."""
    return tuple(Condition(item["type"], item["status"], item["reason"], item["message"]) for item in stored)


def phase(
    conditions: Sequence[Condition],
    *,
    paused: bool,
    suspended: bool,
    deleting: bool,
    archived: bool,
    current: bool,
) -> Phase:
    """The customer's word. `current` says that the reconciler has seen the newest generation."""
    if archived:
        return Phase.DELETED
    if deleting:
        return Phase.DELETING
    if suspended:
        return Phase.SUSPENDED
    known = {item.type: item for item in conditions}
    if READY not in known:
        return Phase.REQUESTED
    ready = known[READY]
    if paused:
        return Phase.PAUSED if ready.reason == PAUSED else Phase.PAUSING
    if ready.status == TRUE:
        words = {DEGRADED: Phase.DEGRADED, UPDATE_FAILED: Phase.UPDATE_FAILED, UPDATING: Phase.UPDATING}
        return words.get(ready.reason, Phase.RUNNING if current else Phase.UPDATING)
    return _phase_unready(known, ready)


def _phase_unready(known: Mapping[str, Condition], ready: Condition) -> Phase:
    if ready.reason == SCALED_TO_ZERO:
        return Phase.SCALED_TO_ZERO
    if known[ACCEPTED].status == FALSE or known[ENGINE_READY].reason in LASTING:
        return Phase.FAILED
    if FALSE in {known[CAPACITY_RESERVED].status, known[SCHEDULED].status}:
        return Phase.WAITING_CAPACITY
    if ready.reason == WAKING:
        return Phase.WAKING
    if ready.reason == RECOVERING:
        return Phase.DEGRADED
    return Phase.LOADING if known[SCHEDULED].status == TRUE else Phase.PROVISIONING
