"""What still happens to an issued invoice: credit notes, payment, becoming void. Its lines never change."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Sum

from billing import ledger
from billing.core.corrections import credit_minor
from billing.invoicing import assign, freeze, unit_pico
from billing.models import AccountKind, Invoice, InvoiceLine
from billing.models.invoices import DRAFT, ISSUED, PAID, VOID
from billing.posting import tenant_lock
from kernel.clock import utcnow
from kernel.money import to_string
from kernel.problems import CONFLICT, INVALID_PARAMETER, NOT_FOUND, Problem
from tenants.services import audit_write

# Corrections of an invoice's lines that no credit note carries yet.
TO_CREDIT = """
SELECT r.event_id, o.line_no, r.meter, r.quantity, r.amount FROM rated_line_invoice o
JOIN usage_event u ON u.corrects = o.event_id JOIN rated_line r ON r.event_id = u.event_id AND r.meter = o.meter
LEFT JOIN rated_line_invoice x ON x.event_id = r.event_id AND x.meter = r.meter
WHERE o.invoice_id = %s AND x.event_id IS NULL ORDER BY o.line_no, r.event_id
"""


@transaction.atomic
def credit_note_issue(*, invoice_id: UUID, actor: str, now: datetime | None = None) -> Invoice:
    """Credit every correction of an issued or paid invoice's lines that waits, each under the line that it credits.

    The money went back with the correction; the note says so. Problems: not_found; conflict (the invoice is
    not issued, nothing waits to be credited).
    """
    invoice = _issued(invoice_id, also=PAID)
    with connection.cursor() as cursor:
        cursor.execute(TO_CREDIT, [invoice.id])
        waiting = cursor.fetchall()
    if not waiting:
        raise Problem(CONFLICT, f"nothing waits to be credited on {invoice.number}; correct usage first")
    note = Invoice.objects.create(
        tenant_id=invoice.tenant_id,
        currency=invoice.currency,
        kind="credit_note",
        period=invoice.period,
        status=DRAFT,
        total_minor=0,
        corrects=invoice,
    )
    credited = [_credit_line(note, number, invoice, line_no, waiting) for number, line_no in _numbered(waiting)]
    note.total_minor = sum(line.amount_minor for line in credited)
    freeze(note, f"C{invoice.period.lower:%Y}-", sum(line.amount_pico for line in credited), now or utcnow())
    audit_write(
        actor=actor,
        tenant_id=note.tenant_id,
        action="credit_note.issued",
        detail={"number": note.number, "invoice": invoice.number},
    )
    return note


@transaction.atomic
def invoice_pay(*, invoice_id: UUID, received_pico: int, actor: str) -> Invoice:
    """Mark an issued invoice paid; what was received settles agreed credit, the rest is own money.

    `received_pico` is 0 where the balance paid for everything. A repeat changes nothing. Problems: not_found;
    invalid_parameter (below zero, or more than the invoice's total); conflict (it is a draft or void).
    """
    invoice = _issued(invoice_id, also=PAID)
    if invoice.status == PAID:
        return invoice
    total_pico = invoice.total_minor * unit_pico(invoice.currency)
    if not 0 <= received_pico <= max(0, total_pico):
        raise Problem(
            INVALID_PARAMETER,
            f"received is from 0 to {to_string(total_pico)} {invoice.currency}; book more than that as a top-up",
            param="received",
        )
    if received_pico:
        accounts = ledger.accounts_lock(tenant_id=invoice.tenant_id, currency=invoice.currency)
        owed = max(0, -accounts[AccountKind.RECEIVABLE].posted) if AccountKind.RECEIVABLE in accounts else 0
        amounts = {ledger.house_account(currency=invoice.currency, kind=AccountKind.CASH).id: -received_pico}
        if owed:
            amounts[accounts[AccountKind.RECEIVABLE].id] = min(owed, received_pico)
        amounts[accounts[AccountKind.PREPAID].id] = received_pico - min(owed, received_pico)
        tx_id = ledger.tx_open(
            tenant_id=invoice.tenant_id,
            kind="payment",
            idem_key=f"payment:{invoice.id}",
            source_type="invoice",
            source_id=str(invoice.id),
            effective_at=utcnow(),
        )
        ledger.entries_write(tx_id=tx_id, currency=invoice.currency, amounts=amounts)
    return _moved(invoice, PAID, actor, {"received": to_string(received_pico)})


@transaction.atomic
def invoice_void(*, invoice_id: UUID, actor: str, reason: str) -> Invoice:
    """Void an issued invoice that credit notes took back whole: nobody is to pay it. A repeat changes nothing.

    Usage stays on the invoice that billed it, so one that still bills something cannot become void.
    Problems: not_found; conflict (it is no issued invoice, or something is left on it).
    """
    invoice = _issued(invoice_id, also=VOID)
    if invoice.status == VOID:
        return invoice
    left = invoice.total_minor + sum(note.total_minor for note in invoice.credit_notes.all())
    if left:
        raise Problem(
            CONFLICT, f"{invoice.number} still bills {left} minor units; correct the usage and issue a credit note"
        )
    return _moved(invoice, VOID, actor, {"reason": reason})


def _issued(invoice_id: UUID, *, also: str = ISSUED) -> Invoice:
    """A regular invoice that is issued (or in the state `also`), alone with its tenant's usage."""
    found = Invoice.objects.filter(id=invoice_id, kind="regular")
    tenant_id = found.values_list("tenant_id", flat=True).first()
    if tenant_id is None:
        raise Problem(NOT_FOUND, f"there is no invoice {invoice_id}")
    tenant_lock(tenant_id=tenant_id)
    invoice = found.select_for_update().get()
    if invoice.status not in {ISSUED, also}:
        raise Problem(CONFLICT, f"invoice {invoice.number or invoice_id} is {invoice.status}, not issued")
    return invoice


def _moved(invoice: Invoice, status: str, actor: str, detail: dict[str, str]) -> Invoice:
    invoice.status = status
    invoice.save(update_fields=["status"])
    audit_write(
        actor=actor,
        tenant_id=invoice.tenant_id,
        action=f"invoice.{status}",
        detail={"number": invoice.number, **detail},
    )
    return invoice


def _numbered(waiting: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, int]]:
    """(Line of the note, line that it credits), from 1."""
    return enumerate(sorted({line_no for _, line_no, *_ in waiting}), 1)


def _credit_line(
    note: Invoice, number: int, invoice: Invoice, line_no: int, waiting: Sequence[tuple[Any, ...]]
) -> InvoiceLine:
    """One line of a credit note over all corrections of one line, which it records as credited."""
    rows = [row for row in waiting if row[1] == line_no]
    line = InvoiceLine.objects.get(invoice=invoice, line_no=line_no)
    before = InvoiceLine.objects.filter(invoice__corrects=invoice, credits_line_no=line_no).aggregate(
        pico=Sum("amount_pico", default=0), minor=Sum("amount_minor", default=0)
    )
    amount_pico = sum(int(amount) for *_, amount in rows)
    minor = credit_minor(
        line_minor=line.amount_minor,
        credited_minor=-before["minor"],
        left_pico=int(line.amount_pico + before["pico"] + amount_pico),
        currency=invoice.currency,
    )
    credit = InvoiceLine.objects.create(
        invoice=note,
        line_no=number,
        sku=line.sku,
        meter=line.meter,
        num_pico=line.num_pico,
        den=line.den,
        quantity=sum(quantity for _, _, _, quantity, _ in rows),
        amount_pico=amount_pico,
        amount_minor=-minor,
        credits_line_no=line_no,
    )
    assign(note, [(event_id, meter, number) for event_id, _, meter, _, _ in rows])
    return credit
