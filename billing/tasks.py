"""Timers: each calls one service; a missed or repeated run is harmless."""

from celery import shared_task

from billing import books, implausible, invoicing, ledger, months, operations, payments, reserved, scoped, spans
from kernel.clock import utcnow


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


@shared_task(name="billing.close_months")
def close_months() -> None:
    """Issue invoices and credit notes that are due."""
    months.month_close()


@shared_task(name="billing.check_books")
def check_books() -> None:
    """Run the invariants; each that is broken raises one alarm an hour, and stops invoicing where it pages.

    Counts that no invariant can judge are looked at as well.
    """
    implausible.hit_jumps_alarm()
    implausible.uncounted_alarm()
    hour = utcnow().strftime("%Y-%m-%dT%H")
    for violation in books.check():
        ledger.alarm(key=f"books:{violation.name}:{hour}", sentence=f"{violation.name}: {violation}")


@shared_task(name="billing.take_payments")
def take_payments() -> None:
    """Credit what payment notices say."""
    payments.notices_take()


@shared_task(name="billing.expire_credits")
def expire_credits() -> None:
    """Give back what is left of expired credit."""
    scoped.credits_expire()


@shared_task(name="billing.apply_corrections")
def apply_corrections() -> None:
    """Apply parked corrections whose usage has come."""
    operations.corrections_apply()
