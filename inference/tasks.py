"""Celery's doors to the reconciler."""

from uuid import UUID

from celery import shared_task

from inference.hints import TASK
from inference.reconciler.run import reconcile
from inference.sweep import is_due, sweep


@shared_task(name=TASK)
def reconcile_endpoint(endpoint_id: str) -> None:
    """One pass over an endpoint, unless an earlier one has dealt with what this hint was for."""
    if is_due(UUID(endpoint_id)):
        reconcile(UUID(endpoint_id))


@shared_task(name="inference.sweep")
def sweep_all() -> None:
    """Facts of every cluster, then every due endpoint."""
    sweep()
