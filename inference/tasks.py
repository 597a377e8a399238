"""Celery's doors to the reconciler."""

import time
from datetime import datetime

from celery import shared_task

from inference.clock import database_now
from inference.hints import FOLD_S, TASK
from inference.reconciler.run import drain
from inference.sweep import sweep


@shared_task(name=TASK)
def reconcile_due(look_at: str) -> None:
    """Passes over what is due, begun no earlier than what the hint speaks for is committed."""
    left_s = (datetime.fromisoformat(look_at) - database_now()).total_seconds()
    time.sleep(min(FOLD_S, max(0.0, left_s)))
    drain()


@shared_task(name="inference.sweep")
def sweep_all() -> None:
    """Facts of every cluster, then every due endpoint."""
    sweep()
