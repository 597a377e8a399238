"""Timers of what joins rooms: the projection, engines' counters beside the bill, the end of what nobody reads again."""

from datetime import timedelta

from celery import shared_task

from controlplane.api import idempotency
from controlplane.projection import client, project_all
from controlplane.scrape import engines_scrape
from inference.billable import RESERVED_TOPIC, TOPIC
from kernel.clock import utcnow
from tenants import outbox
from tenants.sign_in import sign_ins_forget

# Far longer than a fact may be repeated; billing keeps its own copy.
FACTS_KEPT = timedelta(days=7)


@shared_task(name="controlplane.project")
def project() -> None:
    """Write the whole projection: enough alone, whatever write was lost."""
    project_all()


@shared_task(name="controlplane.scrape_engines")
def scrape_engines() -> None:
    """Read every engine's token counters."""
    engines_scrape(client())


@shared_task(name="controlplane.expire")
def expire() -> None:
    """Forget facts that took effect long ago, answers that are replayed no more, and failed sign-ins of the past."""
    outbox.expire(topics=[TOPIC, RESERVED_TOPIC], before=utcnow() - FACTS_KEPT)
    idempotency.expire()
    sign_ins_forget()
