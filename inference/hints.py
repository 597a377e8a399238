"""Hints: an early pass for an endpoint. Losing one costs a few seconds, never correctness."""

import logging
from uuid import UUID

from celery import current_app
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)

TASK = "inference.reconcile"


def hint(endpoint_id: UUID) -> None:
    """Ask for a pass soon; a broker that does not answer is no fault of the caller."""
    try:
        current_app.send_task(TASK, args=[str(endpoint_id)], retry=False, ignore_result=True)
    except OperationalError:
        log.warning("no hint for endpoint %s: the broker does not answer; the sweep finds it", endpoint_id)
