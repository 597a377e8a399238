"""A replica's life and its billable facts, from what was seen before and is seen now. Pure.

It is billed in spans: from a token that came through the gateway to the last proof of life before it
stopped answering, was not seen for longer than a slot, or ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from inference.core.words import ReplicaState
from k8s.observe import ObservedPod

ALIVE_SLOT_S = 300
FROM, ALIVE, TO = "from", "alive", "to"


@dataclass(frozen=True, slots=True)
class Life:
    """One replica as its row tells it; `serving_at` begins its open span, None where it has none.

    `was_ready` is what the facts before said of its pod; `restarted` that its engine began anew since.
    """

    pod_uid: UUID
    state: ReplicaState
    serving_at: datetime | None
    alive_at: datetime | None
    was_ready: bool
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What to write of one replica: its new state and last proof of life, and the fact to bill by, if any.

    TO ends its span: it serves again, or is billed again, once another token came through the gateway.
    """

    pod_uid: UUID
    state: ReplicaState
    alive_at: datetime | None
    fact: str | None = None
    fact_at: datetime | None = None


def follow(
    lives: Sequence[Life],
    pods: Mapping[UUID, ObservedPod],
    *,
    as_of: datetime,
    proof_at: datetime,
    stopped_at: datetime | None,
) -> list[Change]:
    """Changes of known replicas under the facts of `as_of`.

    `proof_at` is when the facts before were last true: the last proof of life of a pod that they called
    ready. `stopped_at` is the pause or delete that ends the bill, None while it runs. A span ends at the
    earlier of the two; a pod that a stop has just put on its way out is there to prove that it lived until
    then.
    """
    changes = (
        _change(life, pods.get(life.pod_uid), as_of=as_of, proof_at=proof_at, stopped_at=stopped_at) for life in lives
    )
    return [change for change in changes if change is not None]


def _change(
    life: Life, pod: ObservedPod | None, *, as_of: datetime, proof_at: datetime, stopped_at: datetime | None
) -> Change | None:
    state = _state(life, pod)
    if life.serving_at is None or life.alive_at is None:
        return Change(life.pod_uid, state, life.alive_at) if state is not life.state else None
    last = max(life.alive_at, proof_at) if life.was_ready else life.alive_at
    if state is life.state and as_of - last <= timedelta(seconds=ALIVE_SLOT_S):
        if stopped_at is not None or slot(life.alive_at) >= slot(as_of):
            return None
        return Change(life.pod_uid, state, as_of, ALIVE, as_of)
    if stopped_at is not None:
        leaves_by_it = pod is not None and pod.terminating and life.was_ready and stopped_at <= as_of
        last = min(max(last, stopped_at) if leaves_by_it else last, stopped_at)
    last = max(life.serving_at, last)
    return Change(life.pod_uid, state, last, TO, last)


def _state(life: Life, pod: ObservedPod | None) -> ReplicaState:
    if pod is None or pod.terminating:
        return ReplicaState.GONE
    return life.state if pod.ready and not life.restarted else ReplicaState.PROVING


def slot(at: datetime) -> int:
    """The five-minute slot of an instant: at most one fact "alive" per pod falls into it."""
    return int(at.timestamp()) // ALIVE_SLOT_S
