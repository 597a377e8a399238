"""The end of a month: rebates, invoices and credit notes, issued by a timer unless the books are red."""

import logging
from datetime import datetime, timedelta

from django.db import connection

from billing import ledger
from billing.invoicing import FINAL_AFTER, books_red, drafts_update, invoice_issue
from billing.models import Invoice, TokenPackage
from billing.models.invoices import DRAFT
from billing.rebates import rebates_post
from billing.settling import credit_note_issue
from kernel.clock import month_of, utcnow

log = logging.getLogger(__name__)
ACTOR = "end of month"
# Issued invoices with corrections that no credit note carries yet.
UNCREDITED = """
SELECT DISTINCT o.invoice_id FROM rated_line_invoice o
JOIN invoice i ON i.id = o.invoice_id AND i.kind = 'regular' AND i.status IN ('issued', 'paid')
JOIN usage_event u ON u.corrects = o.event_id JOIN rated_line r ON r.event_id = u.event_id AND r.meter = o.meter
LEFT JOIN rated_line_invoice x ON x.event_id = r.event_id AND x.meter = r.meter
WHERE x.event_id IS NULL ORDER BY 1
"""


def month_close(*, now: datetime | None = None) -> list[str]:
    """Issue every draft whose month ended 72 hours ago, and the credit notes that are due; their numbers.

    A broken invariant that pages (an overcharge by the engines' counters among them) stops all of it: an alarm
    says which rows, and the next run tries again. What breaks for one tenant is an alarm too and stops no other's.
    A repeat issues nothing twice.
    """
    now = now or utcnow()
    packages_use(now=now)
    drafts_update(now=now)
    due = list(
        Invoice.objects.filter(
            kind="regular", status=DRAFT, lines__isnull=False, period__endswith__lte=now - FINAL_AFTER
        )
        .distinct()
        .order_by("period", "id")
    )
    with connection.cursor() as cursor:
        cursor.execute(UNCREDITED)
        to_credit = [row[0] for row in cursor.fetchall()]
    if not due and not to_credit:
        return []
    rebated = []
    for draft in due:
        with ledger.apart(what=f"the rebate of {draft.period.lower:%Y-%m} for {draft.tenant_id}"):
            _rebates(draft, now)
            rebated.append(draft)
    if red := books_red():
        said = "; ".join(f"{violation.name}: {violation}" for violation in red)
        ledger.alarm(key=f"invoicing-stopped:{now:%Y-%m-%d}", sentence=f"invoicing is stopped: {said}")
        log.error("invoicing is stopped: %s", said)
        return []
    issued = []
    for draft in rebated:
        with ledger.apart(what=f"the invoice of {draft.period.lower:%Y-%m} for {draft.tenant_id}"):
            issued.append(invoice_issue(invoice_id=draft.id, actor=ACTOR, now=now, books_whole=True))
    for invoice_id in to_credit:
        with ledger.apart(what=f"the credit note on invoice {invoice_id}"):
            issued.append(credit_note_issue(invoice_id=invoice_id, actor=ACTOR, now=now))
    return [str(document.number) for document in issued]


def packages_use(*, now: datetime) -> None:
    """Give back what packages cover of this month's use so far: its money is not waited for until the month's end."""
    live = TokenPackage.objects.filter(from_at__lte=now, until_at__gt=month_of(now)[0])
    for tenant_id, currency in live.values_list("tenant_id", "currency").distinct().order_by("tenant_id", "currency"):
        with ledger.apart(what=f"the rebate of {now:%Y-%m} for {tenant_id}"):
            rebates_post(tenant_id=tenant_id, currency=currency, period=month_of(now), now=now)


def _rebates(draft: Invoice, now: datetime) -> None:
    """Of the draft's month, and of the one before it, whose late use is on this draft too."""
    month = (draft.period.lower, draft.period.upper)
    for period in (month_of(draft.period.lower - timedelta(days=1)), month):
        rebates_post(tenant_id=draft.tenant_id, currency=draft.currency, period=period, now=now)
