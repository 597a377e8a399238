"""Celery's door to the projection."""

from celery import shared_task

from controlplane.projection import project_all


@shared_task(name="controlplane.project")
def project() -> None:
    """Write the whole projection: enough alone, whatever write was lost."""
    project_all()
