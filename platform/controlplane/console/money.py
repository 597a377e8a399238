"""What the billing and invoice pages show: accounts, ledger entries and invoices in words."""

from dataclasses import dataclass
from datetime import datetime

from django.utils.functional import Promise

from billing.core.exports import Fact
from billing.models import Invoice
from billing.selectors import balance_for, entries_list_for, invoice_facts_for, invoice_list_for
from controlplane.console import words
from controlplane.console.words import Word
from kernel import ids
from kernel.money import MINOR_DIGITS, PICO
from kernel.problems import NOT_FOUND, Problem
from tenants.models import Tenant

LATEST = 50
FACTS_SHOWN = 500


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One account; amounts in pico-units."""

    label: str | Promise
    posted: int
    held: int
    available: int


@dataclass(frozen=True, slots=True)
class InvoiceLineRow:
    """One line of an invoice: `amount` exact, `billed` its share of the rounded total, both in pico-units.

    `price` is of `units` of the meter, in pico-units.
    """

    number: int
    sku: str
    meter: str | Promise
    quantity: int
    price: int
    units: int
    amount: int
    billed: int


@dataclass(frozen=True, slots=True)
class InvoiceCard:
    """An invoice or credit note with its lines; `total` is in pico-units, already rounded to minor units.

    `corrects` is (id, number) of the invoice that a credit note corrects, `credit_notes` those of an invoice.
    """

    id: str
    number: str
    kind: str
    status: Word
    issued_at: datetime | None
    period_start: datetime
    period_end: datetime
    currency: str
    total: int
    lines: tuple[InvoiceLineRow, ...]
    corrects: tuple[str, str] | None
    credit_notes: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class EntryRow:
    """One side of a ledger transaction."""

    at: datetime
    kind: str | Promise
    tx: str
    account: str | Promise
    currency: str
    amount: int


def accounts(tenant: Tenant) -> list[AccountRow]:
    """The tenant's accounts."""
    return [
        AccountRow(words.label_of(words.ACCOUNTS, item.kind), item.posted_pico, item.held_pico, item.available_pico)
        for item in balance_for(tenant.id).accounts
    ]


def invoices(tenant: Tenant) -> list[InvoiceCard]:
    """The tenant's invoices and credit notes, newest period first."""
    return [invoice_card(item) for item in invoice_list_for(tenant.id).select_related("corrects")]


def invoice_card(invoice: Invoice) -> InvoiceCard:
    """An invoice in words."""
    return InvoiceCard(
        id=ids.encode(ids.INVOICE, invoice.id),
        number=invoice.number or "",
        kind=invoice.kind,
        status=words.INVOICES[invoice.status],
        issued_at=invoice.issued_at,
        period_start=invoice.period.lower,
        period_end=invoice.period.upper,
        currency=invoice.currency,
        total=_minor(invoice.total_minor, invoice.currency),
        lines=tuple(
            InvoiceLineRow(
                number=line.line_no,
                sku=line.sku,
                meter=words.label_of(words.METERS, line.meter),
                quantity=line.quantity,
                price=int(line.num_pico),
                units=line.den,
                amount=int(line.amount_pico),
                billed=_minor(line.amount_minor, invoice.currency),
            )
            for line in sorted(invoice.lines.all(), key=lambda line: line.line_no)
        ),
        corrects=_corrects(invoice),
        credit_notes=tuple(
            (ids.encode(ids.INVOICE, note.id), note.number or "", _minor(note.total_minor, note.currency))
            for note in invoice.credit_notes.order_by("number")
        ),
    )


def line_facts(invoice: Invoice, line_no: int) -> list[Fact]:
    """The rated events behind a line, in order. Problem NOT_FOUND for a line that it does not have."""
    if line_no not in {line.line_no for line in invoice.lines.all()}:
        raise Problem(NOT_FOUND, f"the invoice has no line {line_no}")
    return invoice_facts_for(invoice, line_no=line_no)


def entries(tenant: Tenant) -> list[EntryRow]:
    """The newest ledger entries."""
    return [
        EntryRow(
            at=entry.tx.recorded_at,
            kind=words.label_of(words.TRANSACTIONS, entry.tx.kind),
            tx=str(entry.tx_id),
            account=words.label_of(words.ACCOUNTS, entry.account.kind),
            currency=entry.currency,
            amount=entry.amount,
        )
        for entry in entries_list_for(tenant.id)[:LATEST]
    ]


def _minor(amount: int, currency: str) -> int:
    return int(amount * PICO // 10 ** MINOR_DIGITS[currency])


def _corrects(invoice: Invoice) -> tuple[str, str] | None:
    if invoice.corrects is None:
        return None
    return ids.encode(ids.INVOICE, invoice.corrects.id), invoice.corrects.number or ""
