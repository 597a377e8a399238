"""Timers: each calls one service; a missed or repeated run is harmless."""

import logging

from celery import shared_task

from billing import books, invoicing, reserved, spans

log = logging.getLogger(__name__)


@shared_task(name="billing.take_facts")
def take_facts() -> None:
    """Copy inference's billable facts."""
    spans.facts_take()
    reserved.facts_take()


@shared_task(name="billing.rate_slices")
def rate_slices() -> None:
    """Book dedicated time and reserved days."""
    spans.slices_rate()
    reserved.days_rate()


@shared_task(name="billing.draft_invoices")
def draft_invoices() -> None:
    """Bring every draft up to date."""
    invoicing.drafts_update()


@shared_task(name="billing.check_books")
def check_books() -> None:
    """Run the invariants; what they find is logged as an error."""
    for violation in books.check():
        log.error("%s: %s: %s", violation.name, violation.sentence, violation.rows)
