"""A reservation's pass: tokens a minute that a tenant keeps for itself of shared engines. Pure.

It runs nothing of its own. It serves while its carrier does, a deployment of the operator's shared endpoint,
and is billed from its route to its end, but for the time in which the carrier serves nobody.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from inference.core import conditions as c
from inference.core.conditions import Condition
from inference.core.decide import Action, CloseHold, Decision, Meter, ProgramRoute, RemoveRoute, going_down
from inference.core.status import SUSPENDED_SENTENCE
from inference.core.words import Finalizer

FINALIZERS = (Finalizer.ROUTE, Finalizer.METERING, Finalizer.HOLD)
_RETRY_S = 15
_CARRIED = (c.WEIGHTS_CACHED, c.SCHEDULED, c.ENGINE_READY)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a shared deployment lets in reservations, in tokens a minute: of `total_tpm`, `taken_tpm` are taken."""

    min_tpm: int
    total_tpm: int
    taken_tpm: int

    @property
    def free_tpm(self) -> int:
        """What the next reservation may have; none where replicas were taken from under the present ones."""
        return max(0, self.total_tpm - self.taken_tpm)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservedRow:
    """A reservation's intent and status, and how its carrier is.

    `metered_ktpm` is what billing was last told, `held` that money is set aside. `absent` says why nobody can
    describe its route any more, "" else. `carried` are the conditions of the carrier's endpoint, `serving` its
    replicas that serve. `ends_at` is when the bill ends if it ends now, None for now.
    """

    deployment_id: UUID
    generation: int
    stop: str
    deleting: bool
    routed: str
    conditions: tuple[Condition, ...]
    ktpm: int
    metered_ktpm: int
    held: bool
    absent: str
    carried: tuple[Condition, ...]
    serving: int
    ends_at: datetime | None


def decide(row: ReservedRow) -> Decision:
    """What to do next for one reservation, and its status."""
    routed = f"{row.generation}:{row.stop or 'run'}"
    actions = [*_route(row, routed), *_money(row)]
    if row.deleting:
        left = zip(FINALIZERS, (bool(row.routed), bool(row.metered_ktpm), row.held), strict=True)
        return going_down(actions, dict(left), row.serving)
    status = _status(row, routed)
    is_settled = row.stop or all(item.status == c.TRUE for item in status)
    return Decision(tuple(actions), status, FINALIZERS, row.serving, None if is_settled and not actions else _RETRY_S)


def _route(row: ReservedRow, routed: str) -> Iterator[Action]:
    if row.deleting:
        if row.routed:
            yield RemoveRoute()
    elif row.routed != routed and not row.absent:
        yield ProgramRoute(routed)


def _money(row: ReservedRow) -> Iterator[Action]:
    ended = bool(row.stop) or row.deleting
    ktpm = row.ktpm if row.serving and not ended else 0
    if ktpm != row.metered_ktpm:
        yield Meter(row.deployment_id, ktpm, None if ktpm else row.ends_at)
    elif row.held and ended:
        yield CloseHold(row.deployment_id)


def _status(row: ReservedRow, routed: str) -> tuple[Condition, ...]:
    known = {item.type: item for item in row.carried}
    accepted = Condition(c.ACCEPTED, c.TRUE, "Placed", "on the operator's shared engines")
    if row.absent:
        accepted = Condition(c.ACCEPTED, c.FALSE, c.NOT_IN_CATALOGUE, row.absent)
    parts = (
        accepted,
        Condition(c.CAPACITY_RESERVED, c.TRUE, "Reserved", f"{row.ktpm},000 tokens a minute"),
        *(known.get(name, Condition(name, c.UNKNOWN, "NoPodYet")) for name in _CARRIED),
        Condition(c.ROUTE_PROGRAMMED, c.TRUE, "Programmed")
        if row.routed == routed
        else Condition(c.ROUTE_PROGRAMMED, c.FALSE, "Pending", "the gateways do not know this generation yet"),
    )
    return (*parts, _ready(row, parts))


def _ready(row: ReservedRow, parts: tuple[Condition, ...]) -> Condition:
    if row.stop:
        return Condition(c.READY, c.FALSE, row.stop, SUSPENDED_SENTENCE)
    if row.absent:
        status, reason = (c.TRUE, c.UPDATE_FAILED) if row.serving else (c.FALSE, c.NOT_IN_CATALOGUE)
        return Condition(c.READY, status, reason, row.absent)
    count = f"{row.serving} shared replicas serve"
    if row.serving:
        return Condition(c.READY, c.TRUE, c.SERVING, count)
    before = next((item for item in row.conditions if item.type == c.READY), None)
    if before is not None and before.reason in {c.SERVING, c.RECOVERING}:
        return Condition(c.READY, c.FALSE, c.RECOVERING, count)
    blocking = next((item for item in parts if item.status != c.TRUE), None)
    return Condition(c.READY, c.FALSE, blocking.reason if blocking else "Proving", blocking.message if blocking else "")
