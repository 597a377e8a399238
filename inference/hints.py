"""Hints: an early look at what is due. Losing one costs a few seconds, never correctness."""

import logging
import time
from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

from celery import current_app
from django.db import transaction
from kombu.exceptions import OperationalError

from inference.clock import database_now
from inference.models import Endpoint

log = logging.getLogger(__name__)

TASK = "inference.reconcile"
# A hint speaks for all that is committed until so long after it was sent: who takes it looks no earlier.
FOLD_S = 0.2

# By delay: when this process sent a hint last.
_sent_at_s: dict[float, float] = {}


def hint(in_s: float = 0.0) -> None:
    """Ask, after the commit, for a look at what is due by then; a broker that does not answer is no fault of ours."""
    now_s = time.monotonic()
    if now_s - _sent_at_s.get(in_s, float("-inf")) < FOLD_S:
        return
    look_at = database_now() + timedelta(seconds=in_s + FOLD_S)
    try:
        current_app.send_task(TASK, args=[look_at.isoformat()], countdown=in_s or None, retry=False, ignore_result=True)
        _sent_at_s[in_s] = now_s
    except OperationalError:
        log.warning("no hint is sent: the broker does not answer; the sweep finds what is due")


@transaction.atomic
def due_mark(endpoint_ids: Collection[UUID]) -> None:
    """Have the next look take these. Rows are locked in the order of ids, as everywhere."""
    rows = Endpoint.objects.filter(id__in=endpoint_ids, archived_at__isnull=True).order_by("id").select_for_update()
    Endpoint.objects.filter(id__in=list(rows.values_list("id", flat=True))).update(due_at=database_now())
