"""What the usage and billing pages show: billing's rows in words, with the names of inference's endpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from django.db.models import QuerySet, Sum
from django.db.models.functions import TruncDate
from django.utils.functional import Promise

from billing.models import UsageEvent
from billing.selectors import balance_for, entries_list_for, invoice_list_for, usage_list_for
from controlplane.console import words
from controlplane.console.words import Word
from inference.selectors import endpoint_list_for, endpoint_list_public
from kernel import ids
from kernel.clock import month_of, utcnow
from kernel.money import MINOR_DIGITS
from tenants.models import Tenant

LATEST = 50


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One account; amounts in pico-units."""

    label: str | Promise
    posted: int
    held: int
    available: int


@dataclass(frozen=True, slots=True)
class UsageRow:
    """A sum of rated lines; `day` and `endpoint` are empty in totals."""

    meter: str | Promise
    quantity: int
    amount: int
    day: date | None = None
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class EventRow:
    """One usage event with its price."""

    id: str
    endpoint: str
    event: UsageEvent
    counts: tuple[tuple[str | Promise, int], ...]
    amount: int


@dataclass(frozen=True, slots=True)
class UsageReport:
    """A period's usage: sums by day, totals by meter, the newest events, and endpoints to filter by."""

    rows: tuple[UsageRow, ...]
    totals: tuple[UsageRow, ...]
    total: int
    events: tuple[EventRow, ...]
    endpoints: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class InvoiceLineRow:
    """One line of an invoice."""

    number: int
    sku: str
    meter: str | Promise
    quantity: int
    amount: int


@dataclass(frozen=True, slots=True)
class InvoiceCard:
    """An invoice with its lines; `total` is in pico-units, already rounded to minor units."""

    id: str
    status: Word
    period_start: datetime
    period_end: datetime
    currency: str
    total: int
    lines: tuple[InvoiceLineRow, ...]


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


def endpoint_cost(tenant: Tenant, endpoint_id: str) -> int:
    """What an endpoint's rated lines of this month add up to, pico-units."""
    start, end = month_of(utcnow())
    total = _events(tenant, endpoint_id, start, end).aggregate(total=Sum("lines__amount"))["total"]
    return int(total or 0)


def usage_report(tenant: Tenant, *, endpoint_id: str, start: datetime, end: datetime) -> UsageReport:
    """Usage of [start, end) of one endpoint, or of all where `endpoint_id` is empty."""
    names = _names(tenant)
    events = _events(tenant, endpoint_id, start, end)
    days = _sums(events, "day", "endpoint_id", "lines__meter")
    totals = _sums(events, "lines__meter")
    rows = tuple(
        UsageRow(
            meter=words.label_of(words.METERS, item["lines__meter"]),
            quantity=item["quantity"],
            amount=int(item["amount"]),
            day=item["day"],
            endpoint=_name(names, item["endpoint_id"]),
        )
        for item in days
    )
    return UsageReport(
        rows=rows,
        totals=tuple(
            UsageRow(words.label_of(words.METERS, item["lines__meter"]), item["quantity"], int(item["amount"]))
            for item in totals
        ),
        total=sum(row.amount for row in rows),
        events=tuple(_event(names, item) for item in events.prefetch_related("lines")[:LATEST]),
        endpoints=tuple(names.items()),
    )


def draft_invoice(tenant: Tenant) -> InvoiceCard | None:
    """This month's draft; None before its first line."""
    start, _end = month_of(utcnow())
    for invoice in invoice_list_for(tenant.id):
        if invoice.kind == "regular" and invoice.period.lower == start:
            lines = sorted(invoice.lines.all(), key=lambda line: line.line_no)
            return InvoiceCard(
                id=ids.encode(ids.INVOICE, invoice.id),
                status=words.INVOICES[invoice.status],
                period_start=invoice.period.lower,
                period_end=invoice.period.upper,
                currency=invoice.currency,
                total=invoice.total_minor * 10 ** (12 - MINOR_DIGITS[invoice.currency]),
                lines=tuple(
                    InvoiceLineRow(
                        number=line.line_no,
                        sku=line.sku,
                        meter=words.label_of(words.METERS, line.meter),
                        quantity=line.quantity,
                        amount=line.amount_pico,
                    )
                    for line in lines
                ),
            )
    return None


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


def _events(tenant: Tenant, endpoint_id: str, start: datetime, end: datetime) -> QuerySet[UsageEvent]:
    return usage_list_for(tenant.id, endpoint_id=endpoint_id, start=start, end=end).prefetch_related(None)


def _sums(events: QuerySet[UsageEvent], *by: str) -> list[dict[str, Any]]:
    """Quantity and amount of rated lines, grouped; newest day first."""
    sums = (
        events.filter(lines__isnull=False)
        .annotate(day=TruncDate("ended_at"))
        .order_by(*(f"-{name}" if name == "day" else name for name in by))
        .values(*by)
        .annotate(quantity=Sum("lines__quantity"), amount=Sum("lines__amount"))
    )
    return list(sums)


def _event(names: Mapping[str, str], event: UsageEvent) -> EventRow:
    return EventRow(
        id=ids.encode(ids.EVENT, event.event_id),
        endpoint=_name(names, event.endpoint_id),
        event=event,
        counts=tuple((words.label_of(words.METERS, name), count) for name, count in event.counts.items() if count),
        amount=sum(line.amount for line in event.lines.all()),
    )


def _names(tenant: Tenant) -> dict[str, str]:
    """Endpoint id → name, of everything that the tenant can call; a deleted endpoint is known by its id."""
    return {view.id: view.name for view in (*endpoint_list_for(tenant.id), *endpoint_list_public())}


def _name(names: Mapping[str, str], endpoint_id: str) -> str:
    return names.get(endpoint_id, endpoint_id)
