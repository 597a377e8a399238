"""A pass: claim, load, decide, act, load again until nothing new is to be done, record."""

import logging
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import models, transaction

from inference import ports
from inference.clock import database_now
from inference.core import conditions, reserved
from inference.core.decide import Action, Decision, decide
from inference.core.reserved import ReservedRow
from inference.core.rows import EndpointRow
from inference.models import Deployment, Endpoint
from inference.reconciler.claim import Claim, StaleClaim, claim
from inference.reconciler.load import Loaded, load
from inference.reconciler.perform import Performer

log = logging.getLogger(__name__)

# Far above what any decision needs; a decision that never settles is left to the next pass.
MAX_STEPS = 16


def reconcile(endpoint_id: UUID) -> bool:
    """One pass over an endpoint; True where it was ours to make. What it leaves undone is due again."""
    held = claim(endpoint_id)
    if held is None:
        return False
    try:
        _record(held, *_settle(held))
    except StaleClaim:
        log.warning("endpoint %s: the claim expired, the result is dropped", endpoint_id)
    return True


def _settle(held: Claim) -> tuple[Loaded, Decision, float]:
    """Act until a decision holds nothing that this pass has not tried; the seconds that a cluster asked for."""
    tried: set[Action] = set()
    after_s = 0.0
    for _ in range(MAX_STEPS):
        loaded = load(held.endpoint_id)
        decision = _decide(loaded.row)
        fresh = [action for action in decision.actions if action not in tried]
        if not fresh:
            break
        performer = Performer(held, loaded)
        for action in fresh:
            tried.add(action)
            try:
                performer.perform(action)
            except ports.Unavailable as error:
                log.warning("endpoint %s: %s: %s", held.endpoint_id, type(action).__name__, error)
        after_s = max(after_s, performer.after_s)
    return loaded, decision, after_s


def _decide(row: EndpointRow | ReservedRow) -> Decision:
    return reserved.decide(row) if isinstance(row, ReservedRow) else decide(row)


def _record(held: Claim, loaded: Loaded, decision: Decision, after_s: float) -> None:
    endpoint, now = loaded.endpoint, database_now()
    retry_s = None if decision.retry_s is None else max(decision.retry_s, after_s)
    status: dict[str, Any] = {
        "observed_generation": endpoint.generation,
        "suspended": loaded.row.stop == conditions.SUSPENDED,
        "conditions": conditions.to_json(decision.conditions, endpoint.conditions, now),
        "serving": decision.serving,
        "finalizers": list(decision.finalizers),
        "due_at": _due_at(endpoint, None if retry_s is None else now + timedelta(seconds=retry_s)),
    }
    if decision.archived:
        status["archived_at"] = now
    with transaction.atomic():
        held.release(**status)
        for deployment_id, read_at in loaded.read_at.items():
            if loaded.deployments[deployment_id].decided_at != read_at:
                Deployment.objects.filter(id=deployment_id).update(decided_at=read_at)


def _due_at(read: Endpoint, at: datetime | None) -> models.Case:
    """The next pass, unless somebody asked for an earlier one since the row was read."""
    unasked = models.Q(due_at=read.due_at) if read.due_at else models.Q(due_at__isnull=True)
    then = models.Value(at, models.DateTimeField())
    return models.Case(models.When(unasked, then=then), default=models.F("due_at"))
