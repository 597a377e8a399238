"""Conditions of an endpoint and the customer's word derived from them. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the phase is read from. `current`: the reconciler has seen the newest generation."""

    known: Mapping[str, Condition]
    paused: bool
    suspended: bool
    deleting: bool
    archived: bool
    current: bool

    def why(self, name: str = READY) -> str:
        """The reason of a condition."""
        return self.known[name].reason

    def is_(self, name: str, status: str) -> bool:
        """Whether a condition has that status."""
        return self.known[name].status == status

    @property
    def serves(self) -> bool:
        """Customers reach a replica."""
        return self.is_(READY, TRUE)


# The first row that holds gives the customer's word.
_PHASES: tuple[tuple[Phase, Callable[[_Look], bool]], ...] = (
    (Phase.DELETED, lambda look: look.archived),
    (Phase.DELETING, lambda look: look.deleting),
    (Phase.SUSPENDED, lambda look: look.suspended),
    (Phase.REQUESTED, lambda look: READY not in look.known),
    (Phase.PAUSED, lambda look: look.paused and look.why() == PAUSED),
    (Phase.PAUSING, lambda look: look.paused),
    (Phase.DEGRADED, lambda look: look.serves and look.why() == DEGRADED),
    (Phase.UPDATE_FAILED, lambda look: look.serves and look.why() == UPDATE_FAILED),
    (Phase.UPDATING, lambda look: look.serves and (look.why() == UPDATING or not look.current)),
    (Phase.RUNNING, lambda look: look.serves),
    (Phase.SCALED_TO_ZERO, lambda look: look.why() == SCALED_TO_ZERO),
    # A stop that has been lifted, until the next pass.
    (Phase.PROVISIONING, lambda look: look.why() in {PAUSED, PAUSING, SUSPENDED}),
    (Phase.FAILED, lambda look: look.is_(ACCEPTED, FALSE) or look.why(ENGINE_READY) in LASTING),
    (Phase.WAITING_CAPACITY, lambda look: look.is_(CAPACITY_RESERVED, FALSE) or look.is_(SCHEDULED, FALSE)),
    (Phase.WAKING, lambda look: look.why() == WAKING),
    (Phase.DEGRADED, lambda look: look.why() == RECOVERING),
    (Phase.LOADING, lambda look: look.is_(SCHEDULED, TRUE)),
    (Phase.PROVISIONING, lambda look: True),
)


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
    look = _Look(
        known={item.type: item for item in conditions},
        paused=paused,
        suspended=suspended,
        deleting=deleting,
        archived=archived,
        current=current,
    )
    return next(word for word, holds in _PHASES if holds(look))
