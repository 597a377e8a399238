"""A pass: claim, load, decide, act, load again until nothing new is to be done, record. Many endpoints at once."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q

from inference.clock import database_after, database_now
from inference.core import conditions, reserved
from inference.core.decide import Action, Decision, Probe, decide
from inference.core.reserved import ReservedRow
from inference.core.rows import EndpointRow
from inference.hints import FOLD_S, hint
from inference.models import Endpoint
from inference.reconciler.claim import Claim, claim
from inference.reconciler.load import Loaded, load
from inference.reconciler.perform import Job, perform
from inference.rows import update_each

log = logging.getLogger(__name__)

# Endpoints that one pass takes together, and for how long a worker goes on before it lets other tasks have a turn.
AT_ONCE, DRAIN_S = 50, 5.0
# Far above what any decision needs; a decision that never settles is left to the next pass.
MAX_STEPS = 16
# A retry this close is asked for at once; the sweep comes too late for it.
SOON_S = 2.0

_STATUS = ("observed_generation", "suspended", "conditions", "serving", "finalizers", "due_at", "archived_at")


def drain() -> int:
    """Passes over all that is due, for DRAIN_S at most; how many endpoints they took."""
    taken, until_s = 0, time.monotonic() + DRAIN_S
    now = database_after(timedelta())
    while True:
        moved = ~Q(generation=F("observed_generation"))
        due = Endpoint.objects.filter(moved | Q(due_at__lte=now) | Q(lock_until__lt=now)).order_by("due_at", "id")
        held = claim(due, AT_ONCE)
        if not held.endpoint_ids:
            return taken
        _take(held)
        taken += len(held.endpoint_ids)
        if time.monotonic() > until_s:
            hint()
            return taken
        if len(held.endpoint_ids) < AT_ONCE:
            time.sleep(FOLD_S)


def reconcile(*endpoint_ids: UUID) -> int:
    """One pass over these of one region, due or not; how many of them were ours to take. What it leaves undone is
    due again."""
    held = claim(Endpoint.objects.filter(id__in=endpoint_ids), len(endpoint_ids))
    _pass(held)
    return len(held.endpoint_ids)


def _take(held: Claim) -> None:
    """A pass; where it breaks, one over each endpoint alone: what is wrong with one holds up no other."""
    try:
        _pass(held)
    except Exception:
        log.exception("a pass over %d endpoints broke", len(held.endpoint_ids))
        if len(held.endpoint_ids) > 1:
            for endpoint_id in held.endpoint_ids:
                _take(Claim(held.token, (endpoint_id,)))


def _pass(held: Claim) -> None:
    """Each endpoint is let go as soon as a decision about it holds nothing that this pass has not tried.

    Probes come last: they take as long as an engine's first token, and nobody else waits for that.
    """
    tried: dict[UUID, set[Action]] = defaultdict(set)
    after_s: dict[UUID, float] = {}
    left = set(held.endpoint_ids)
    with held.kept():
        for step in range(MAX_STEPS):
            settled, jobs = [], []
            for loaded, decision in _decided(held, left):
                fresh = [action for action in decision.actions if action not in tried[loaded.endpoint.id]]
                if fresh and step < MAX_STEPS - 1:
                    jobs += [Job(loaded, action) for action in fresh]
                else:
                    settled.append((loaded, decision))
            if settled:
                _record(held, settled, after_s)
            left = {job.endpoint_id for job in jobs}
            if not left:
                return
            jobs = [job for job in jobs if not isinstance(job.action, Probe)] or jobs
            for job in jobs:
                tried[job.endpoint_id].add(job.action)
            after_s |= perform(held, jobs)


def _decided(held: Claim, endpoint_ids: Iterable[UUID]) -> Iterator[tuple[Loaded, Decision]]:
    for loaded in load(held, set(endpoint_ids)):
        try:
            yield loaded, _decide(loaded.row)
        except Exception:
            log.exception("nothing can be decided about endpoint %s", loaded.endpoint.id)


def _decide(row: EndpointRow | ReservedRow) -> Decision:
    return reserved.decide(row) if isinstance(row, ReservedRow) else decide(row)


def _record(held: Claim, settled: list[tuple[Loaded, Decision]], after_s: dict[UUID, float]) -> None:
    """Write the status of those that are still ours, and let them go."""
    now, changed, acted, soon_s = database_now(), [], [], set()
    with transaction.atomic():
        ours = held.lock()
        kept = [(loaded, decision) for loaded, decision in settled if loaded.endpoint.id in ours]
        for loaded, decision in kept:
            endpoint, due_at = loaded.endpoint, ours[loaded.endpoint.id]
            if due_at == endpoint.due_at:
                # Else somebody has asked for an earlier pass since the row was read.
                retry_s = decision.retry_s and max(decision.retry_s, after_s.get(endpoint.id, 0.0))
                due_at = now + timedelta(seconds=retry_s) if retry_s else None
                soon_s |= {retry_s} if retry_s and retry_s <= SOON_S else set()
            status = _status(loaded, decision, now) | {"due_at": due_at}
            if status != {name: getattr(endpoint, name) for name in status}:
                vars(endpoint).update(status)
                changed.append(endpoint)
            for deployment_id, read_at in loaded.read_at.items():
                row = loaded.deployments[deployment_id]
                if row.decided_at != read_at:
                    row.decided_at = read_at
                    acted.append(row)
        update_each(changed, _STATUS)
        update_each(acted, ["decided_at"])
        let_go = [loaded.endpoint.id for loaded, _ in kept]
        Endpoint.objects.filter(id__in=let_go).update(lock_token=None, lock_until=None)
    if len(kept) < len(settled):
        log.warning("claims on %d endpoints expired, their results are dropped", len(settled) - len(kept))
    if soon_s:
        hint(in_s=min(soon_s))


def _status(loaded: Loaded, decision: Decision, now: datetime) -> dict[str, Any]:
    """The columns of _STATUS but `due_at`."""
    endpoint = loaded.endpoint
    return {
        "observed_generation": endpoint.generation,
        "suspended": loaded.row.stop == conditions.SUSPENDED,
        "conditions": conditions.to_json(decision.conditions, endpoint.conditions, now),
        "serving": decision.serving,
        "finalizers": list(decision.finalizers),
        "archived_at": now if decision.archived else None,
    }
