"""Invoices: drafts that grow with the rated lines, and the step after which nothing changes any more."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange

from billing import books, ledger
from billing.bulk import insert_rows
from billing.core.drafts import LineKey, Rated, gather, share_minor
from billing.models import AccountKind, Invoice, InvoiceLine, RatedLineInvoice
from billing.models.invoices import DRAFT, ISSUED
from billing.posting import tenant_lock
from kernel.clock import month_of, utcnow
from kernel.money import MINOR_DIGITS
from kernel.problems import CONFLICT, NOT_FOUND, Problem
from tenants.services import audit_write

AT_ONCE = 5000
# After a month's end its late usage is waited for so long; what comes later goes on the next invoice.
FINAL_AFTER = timedelta(hours=72)
# Rated lines on no invoice yet; what corrects an issued line waits for its credit note and not for a draft.
WAITING = """
FROM rated_line r JOIN usage_event u ON u.event_id = r.event_id JOIN price_sheet s ON s.sha256 = u.sheet
LEFT JOIN rated_line_invoice x ON x.event_id = r.event_id AND x.meter = r.meter
WHERE x.event_id IS NULL AND NOT EXISTS (
  SELECT 1 FROM rated_line_invoice o JOIN invoice i ON i.id = o.invoice_id
  WHERE o.event_id = u.corrects AND o.meter = r.meter AND i.status <> 'draft')
"""
# Of a period: what started in it, and late use of periods whose invoice is out already.
OF_PERIOD = """
AND u.tenant_id = %(tenant)s AND s.currency = %(currency)s AND u.started_at < %(end)s
AND (u.started_at >= %(start)s OR EXISTS (
  SELECT 1 FROM invoice i WHERE i.tenant_id = u.tenant_id AND i.currency = s.currency AND i.kind = 'regular'
    AND i.status IN ('issued', 'paid') AND i.period @> u.started_at))
"""
LINES_SHA256 = """
SELECT sha256(convert_to(string_agg(concat_ws('|', line_no, sku, meter, quantity, amount_pico, amount_minor,
  credits_line_no), E'\\n' ORDER BY line_no), 'UTF8')) FROM invoice_line WHERE invoice_id = %s
"""


def drafts_update(*, now: datetime | None = None) -> int:
    """Bring the drafts of every tenant, currency and month with waiting lines up to date; how many.

    Late use of a month whose invoice is out goes to the draft of the current month.
    """
    this_month = month_of(now or utcnow())
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT DISTINCT u.tenant_id, s.currency, date_trunc('month', u.started_at, 'UTC') {WAITING} "
            "ORDER BY 1, 2, 3"
        )
        waiting = cursor.fetchall()
    for tenant_id, currency, month in waiting:
        with ledger.apart(what=f"the draft of {month:%Y-%m} for {tenant_id}"):
            closed = Invoice.objects.filter(
                tenant_id=tenant_id, currency=currency, kind="regular", status__in=("issued", "paid")
            ).filter(period__contains=month)
            period = this_month if closed.exists() else month_of(month)
            invoice_draft(tenant_id=tenant_id, currency=currency, period=period)
    return len(waiting)


@transaction.atomic
def invoice_draft(*, tenant_id: UUID, currency: str, period: tuple[datetime, datetime]) -> Invoice:
    """The period's invoice, a draft brought up to date with every rated line that waits for it.

    A rated line is assigned once, for ever; a repeat changes nothing, nor does one on an issued invoice.
    """
    start, end = period
    tenant_lock(tenant_id=tenant_id)
    found = Invoice.objects.select_for_update().filter(
        tenant_id=tenant_id, currency=currency, kind="regular", period__startswith=start
    )
    invoice = found.exclude(status="void").first()
    if invoice is None:
        invoice = Invoice.objects.create(
            tenant_id=tenant_id,
            currency=currency,
            kind="regular",
            period=DateTimeTZRange(start, end),
            status=DRAFT,
            total_minor=0,
        )
    if invoice.status != DRAFT:
        return invoice
    params = {"tenant": tenant_id, "currency": currency, "start": start, "end": end, "limit": AT_ONCE}
    while rated := _waiting(params):
        _assign(invoice, rated)
    _round(invoice)
    return invoice


@transaction.atomic
def invoice_issue(*, invoice_id: UUID, actor: str, now: datetime | None = None, books_whole: bool = False) -> Invoice:
    """Number and freeze a draft; the rounding of its total is posted. A repeat changes nothing.

    `books_whole` says that the caller has just run the invariants.
    Problems: not_found; conflict (the period is not over, nothing is on it, the books are red).
    """
    now = now or utcnow()
    invoice = Invoice.objects.filter(id=invoice_id, kind="regular").first()
    if invoice is None:
        raise Problem(NOT_FOUND, f"there is no invoice {invoice_id}")
    invoice = invoice_draft(
        tenant_id=invoice.tenant_id,
        currency=invoice.currency,
        period=(invoice.period.lower, invoice.period.upper),
    )
    if invoice.status != DRAFT:
        return invoice
    if invoice.period.upper > now:
        raise Problem(CONFLICT, f"the period ends at {invoice.period.upper.isoformat()}; issue it after that")
    amounts = list(InvoiceLine.objects.filter(invoice=invoice).values_list("amount_pico", flat=True))
    if not amounts:
        raise Problem(CONFLICT, "nothing is on this draft; it is not issued")
    red = [] if books_whole else books_red()
    if red:
        names = ", ".join(violation.name for violation in red)
        said = "; ".join(str(violation) for violation in red)
        raise Problem(CONFLICT, f"the books are red ({names}); no invoice is issued until they are not: {said}")
    freeze(invoice, f"M{invoice.period.lower:%Y}-", sum(amounts), now)
    audit_write(actor=actor, tenant_id=invoice.tenant_id, action="invoice.issued", detail={"number": invoice.number})
    return invoice


def books_red() -> list[books.Violation]:
    """What stops invoicing: the invariants that page, with the rows that break them; empty where none does."""
    return [violation for violation in books.check() if violation.pages]


def _waiting(params: dict[str, Any]) -> list[Rated]:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT r.event_id, u.sku, r.meter, r.num_pico, r.den, r.quantity, r.amount {WAITING} {OF_PERIOD} "
            "ORDER BY r.event_id, r.meter LIMIT %(limit)s",
            params,
        )
        return [
            Rated(event_id, LineKey(sku, meter, int(num_pico), den), quantity, int(amount))
            for event_id, sku, meter, num_pico, den, quantity, amount in cursor.fetchall()
        ]


def _assign(invoice: Invoice, rated: Sequence[Rated]) -> None:
    """Add rated lines to the draft's lines and record where each of them went."""
    lines = {
        LineKey(line.sku, line.meter, line.num_pico, line.den): line
        for line in InvoiceLine.objects.filter(invoice=invoice)
    }
    for key, sums in gather(rated).items():
        line = lines.get(key)
        if line is None:
            line = lines[key] = InvoiceLine(
                invoice=invoice,
                line_no=len(lines) + 1,
                sku=key.sku,
                meter=key.meter,
                num_pico=key.num_pico,
                den=key.den,
                quantity=sums.quantity,
                amount_pico=sums.amount_pico,
                amount_minor=0,
            )
            line.save(force_insert=True)
        else:
            line.quantity += sums.quantity
            line.amount_pico += sums.amount_pico
            line.save(update_fields=["quantity", "amount_pico"])
    assign(invoice, [(item.event_id, item.key.meter, lines[item.key].line_no) for item in rated])


def assign(invoice: Invoice, lines: Sequence[tuple[UUID, str, int]]) -> None:
    """Record which invoice line carries each rated line (event, meter)."""
    insert_rows(
        RatedLineInvoice,
        [
            {"event_id": event_id, "meter": meter, "invoice_id": invoice.id, "line_no": line_no}
            for event_id, meter, line_no in lines
        ],
    )


def _round(invoice: Invoice) -> None:
    lines = list(InvoiceLine.objects.filter(invoice=invoice).order_by("line_no"))
    shares = share_minor([line.amount_pico for line in lines], invoice.currency)
    for line, share in zip(lines, shares, strict=True):
        if line.amount_minor != share:
            line.amount_minor = share
            line.save(update_fields=["amount_minor"])
    if invoice.total_minor != sum(shares):
        invoice.total_minor = sum(shares)
        invoice.save(update_fields=["total_minor"])


def freeze(invoice: Invoice, series: str, exact_pico: int, now: datetime) -> None:
    """Post what its total was rounded by, number it and let nothing change from here on."""
    _post_rounding(invoice, exact_pico, now)
    with connection.cursor() as cursor:
        cursor.execute(LINES_SHA256, [invoice.id])
        invoice.lines_sha256 = bytes(cursor.fetchone()[0])
    invoice.number = _number(series)
    invoice.status, invoice.issued_at = ISSUED, now
    invoice.save(update_fields=["lines_sha256", "number", "status", "issued_at", "total_minor"])


def unit_pico(currency: str) -> int:
    """Pico-units of one minor unit."""
    return int(10 ** (12 - MINOR_DIGITS[currency]))


def _post_rounding(invoice: Invoice, exact_pico: int, now: datetime) -> None:
    """What the total was rounded by moves between the tenant's revenue and the house's rounding account."""
    remainder = invoice.total_minor * unit_pico(invoice.currency) - exact_pico
    if remainder == 0:
        return
    accounts = ledger.accounts_lock(tenant_id=invoice.tenant_id, currency=invoice.currency)
    house = ledger.house_account(currency=invoice.currency, kind=AccountKind.ROUNDING)
    tx_id = ledger.tx_open(
        tenant_id=invoice.tenant_id,
        kind="rounding",
        idem_key=f"rounding:{invoice.id}",
        source_type="invoice",
        source_id=str(invoice.id),
        effective_at=now,
    )
    amounts = {accounts[AccountKind.REVENUE].id: remainder, house.id: -remainder}
    ledger.entries_write(tx_id=tx_id, currency=invoice.currency, amounts=amounts)


def _number(series: str) -> str:
    """The next number of a series, gap-free: its row stays locked until this transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO invoice_counter AS c (series, last) VALUES (%s, 1) "
            "ON CONFLICT (series) DO UPDATE SET last = c.last + 1 RETURNING last",
            [series],
        )
        return f"{series}{cursor.fetchone()[0]:06d}"
