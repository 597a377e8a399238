"""A replica's life and its billable facts, from what was seen before and is seen now. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from inference.core.words import ReplicaState
from k8s.observe import ObservedPod

ALIVE_SLOT_S = 300
FROM, ALIVE, TO = "from", "alive", "to"


@dataclass(frozen=True, slots=True)
class Life:
    """One replica as its row tells it; `was_ready` is what the facts before said of its pod."""

    pod_uid: UUID
    state: ReplicaState
    serving_at: datetime | None
    alive_at: datetime | None
    was_ready: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What to write of one replica: its new state and last proof of life, and the fact to bill by, if any."""

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
    ready. `stopped_at` is the pause or delete that ends the bill, None while it runs. A replica ends
    when its pod is gone or on its way out, and then at the earlier of the two; a pod that a stop has just
    put on its way out is there to prove that it lived until then.
    """
    changes: list[Change] = []
    for life in lives:
        pod = pods.get(life.pod_uid)
        if pod is None or pod.terminating:
            proof = proof_at
            if pod is not None and stopped_at is not None and stopped_at <= as_of:
                proof = max(proof_at, stopped_at)
            changes.append(_end(life, proof, stopped_at))
        elif life.state is ReplicaState.SERVING:
            change = _go_on(life, pod, as_of=as_of, proof_at=proof_at, stopped=stopped_at is not None)
            if change is not None:
                changes.append(change)
    return changes


def _end(life: Life, proof_at: datetime, stopped_at: datetime | None) -> Change:
    if life.serving_at is None:
        return Change(life.pod_uid, ReplicaState.GONE, None)
    last = life.alive_at or life.serving_at
    if life.was_ready:
        last = max(last, proof_at)
    ended = max(life.serving_at, min(last, stopped_at) if stopped_at else last)
    return Change(life.pod_uid, ReplicaState.GONE, last, TO, ended)


def _go_on(life: Life, pod: ObservedPod, *, as_of: datetime, proof_at: datetime, stopped: bool) -> Change | None:
    if not pod.ready:
        if life.was_ready and (life.alive_at is None or proof_at > life.alive_at):
            return Change(life.pod_uid, life.state, proof_at)
        return None
    if stopped or (life.alive_at is not None and slot(life.alive_at) >= slot(as_of)):
        return None
    return Change(life.pod_uid, life.state, as_of, ALIVE, as_of)


def slot(at: datetime) -> int:
    """The five-minute slot of an instant: at most one fact "alive" per pod falls into it."""
    return int(at.timestamp()) // ALIVE_SLOT_S
