"""Celery's doors to the reconciler."""

from uuid import UUID

from celery import shared_task

from inference.hints import TASK
from inference.reconciler.run import reconcile
from inference.sweep import sweep


@shared_task(name=TASK)
def reconcile_endpoint(endpoint_id: str) -> None:
    """One pass over an endpoint."""
    reconcile(UUID(endpoint_id))


@shared_task(name="inference.sweep")
def sweep_all() -> None:
    """Facts of every cluster, then every due endpoint."""
    sweep()
