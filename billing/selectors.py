"""Reads of the billing room. Amounts are pico-units; a web process sees one tenant's rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import QuerySet, Sum

from billing.core import exports
from billing.models import (
    SPENDING,
    AccountKind,
    BillableSpan,
    Credit,
    Invoice,
    LedgerAccount,
    LedgerEntry,
    PriceSheet,
    RatedLine,
    UsageEvent,
)
from kernel.clock import month_of, utcnow
from kernel.money import div_half_even
from kernel.pricing import ACCEL_SECOND, Rate, Sheet, sheet_from_body
from kernel.wire import GENERAL, purses_for
from tenants.selectors import tenant_get

FACTS = """
SELECT x.line_no, u.event_id, u.kind, u.corrects, u.started_at, u.ended_at, u.endpoint_id, u.deployment_id, u.pod_uid,
  u.api_key_id, u.sku, r.meter, r.quantity, r.num_pico, r.den, r.amount
FROM rated_line_invoice x JOIN rated_line r ON r.event_id = x.event_id AND r.meter = x.meter
JOIN usage_event u ON u.event_id = x.event_id
WHERE x.invoice_id = %(invoice)s AND (%(line)s::int IS NULL OR x.line_no = %(line)s)
ORDER BY x.line_no, u.event_id, r.meter
"""
PURSES = """
SELECT a.purse, COALESCE(sum(a.posted - a.held - a.min_available), 0)
FROM ledger_account a LEFT JOIN credit c ON c.account_id = a.id
WHERE a.tenant_id = %s AND a.currency = %s AND a.kind = ANY (%s) AND (a.purse = %s OR c.expires_at > %s)
GROUP BY a.purse, c.expires_at, c.id ORDER BY c.expires_at, c.id
"""
# A subquery is asked once, whichever way the sheets are read.
TERMS = """
SELECT t.currency,
  (SELECT body FROM price_sheet WHERE sha256 = (SELECT sheet_at(%(sku)s, %(region)s, t.currency, t.id, %(at)s)))
FROM tenant t WHERE t.id = %(tenant)s
"""


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """One account: booked, set aside in holds, and what may still be spent from it."""

    kind: str
    posted_pico: int
    held_pico: int
    available_pico: int


@dataclass(frozen=True, slots=True)
class Balance:
    """A tenant's money in its currency, scoped credit left out (`credit_list_for`).

    `posted_pico` is what a person is shown as balance (owed overrun counts against it);
    `available_pico` is what new holds may take; `spent_month_pico` is booked usage of this UTC month
    and `accruing_pico` the estimate of dedicated time that runs and is not booked yet.
    """

    currency: str
    accounts: tuple[AccountBalance, ...]
    posted_pico: int
    held_pico: int
    available_pico: int
    spent_month_pico: int
    accruing_pico: int


def balance_for(tenant_id: UUID) -> Balance:
    """The tenant's balance now; all zero before any account is open."""
    currency = tenant_get(tenant_id).currency
    rows = list(LedgerAccount.objects.filter(tenant_id=tenant_id, currency=currency, purse=GENERAL).order_by("id"))
    spendable = [row for row in rows if row.kind in SPENDING]
    own = [row for row in rows if row.kind in {AccountKind.PROMO, AccountKind.PREPAID, AccountKind.OVERRUN}]
    return Balance(
        currency=currency,
        accounts=tuple(AccountBalance(row.kind, row.posted, row.held, row.available) for row in rows),
        posted_pico=sum(row.posted for row in own),
        held_pico=sum(row.held for row in spendable),
        available_pico=sum(row.available for row in spendable),
        spent_month_pico=spent_since(tenant_id, currency, month_of(utcnow())[0]),
        accruing_pico=_accruing(tenant_id, currency),
    )


def usage_total(tenant_id: UUID, since: datetime, *, api_key_ids: Sequence[UUID] = (), endpoint_id: str = "") -> int:
    """Pico-units of the usage that began since then, of some keys or at one endpoint."""
    lines = RatedLine.objects.filter(event__tenant_id=tenant_id, event__started_at__gte=since)
    if api_key_ids:
        lines = lines.filter(event__api_key_id__in=api_key_ids)
    if endpoint_id:
        lines = lines.filter(event__endpoint_id=endpoint_id)
    return int(lines.aggregate(total=Sum("amount"))["total"] or 0)


def usage_by_end_user(tenant_id: UUID, since: datetime, *, api_key_ids: Sequence[UUID]) -> dict[str, int]:
    """Digest of an end user → pico-units of the usage that began since then under some keys."""
    lines = RatedLine.objects.filter(
        event__tenant_id=tenant_id, event__started_at__gte=since, event__api_key_id__in=api_key_ids
    )
    totals = lines.exclude(event__end_user="").values_list("event__end_user").annotate(total=Sum("amount"))
    return {user: int(total) for user, total in totals}


def credit_list_for(tenant_id: UUID) -> QuerySet[Credit]:
    """A tenant's live scoped credit, the soonest to expire first; `account.posted` is what is left of each."""
    live = Credit.objects.filter(tenant_id=tenant_id, expires_at__gt=utcnow())
    return live.select_related("account").order_by("expires_at", "id")


def purses_of(tenant_id: UUID, currency: str) -> list[str]:
    """The purses that a tenant's keys and deployments may use, in the order in which they are tried."""
    return list(purses_room(tenant_id, currency))


def purses_room(tenant_id: UUID, currency: str) -> dict[str, int]:
    """Those purses in that order, the general one last → pico-units that new holds may take from each."""
    kinds = [str(kind) for kind in SPENDING]
    with connection.cursor() as cursor:
        cursor.execute(PURSES, [tenant_id, currency, kinds, GENERAL, utcnow()])
        room = {purse: int(available) for purse, available in cursor.fetchall()}
    return room | {GENERAL: room.get(GENERAL, 0)}


def purses_paying(*, tenant_id: UUID, currency: str, sku: str, pool: str) -> list[str]:
    """Those of them that pay for time of a SKU on a pool (`region/name`; "" is none), in order."""
    return purses_for(purses_of(tenant_id, currency), sku, pool=pool)


def purses_available(*, tenant_id: UUID, currency: str, purses: Sequence[str]) -> int:
    """Pico-units that new holds may take from those purses."""
    rows = LedgerAccount.objects.filter(tenant_id=tenant_id, currency=currency, kind__in=SPENDING, purse__in=purses)
    return sum(account.available for account in rows)


def usage_list_for(
    tenant_id: UUID,
    *,
    endpoint_id: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> QuerySet[UsageEvent]:
    """A tenant's usage events, newest first, with their rated lines in `lines`; slice or page as needed.

    `start` and `end` bound the start of use, half-open, as an invoice's period does.
    """
    events = UsageEvent.objects.filter(tenant_id=tenant_id).prefetch_related("lines").order_by("-event_id")
    if endpoint_id:
        events = events.filter(endpoint_id=endpoint_id)
    if start:
        events = events.filter(started_at__gte=start)
    if end:
        events = events.filter(started_at__lt=end)
    return events


def entries_list_for(tenant_id: UUID) -> QuerySet[LedgerEntry]:
    """A tenant's ledger entries with `tx` and `account`, newest first."""
    return (
        LedgerEntry.objects.filter(account__tenant_id=tenant_id)
        .select_related("tx", "account")
        .order_by("-tx__recorded_at", "tx_id", "seq")
    )


def invoice_list_for(tenant_id: UUID) -> QuerySet[Invoice]:
    """A tenant's invoices, newest period first, with their lines in `lines`."""
    return Invoice.objects.filter(tenant_id=tenant_id).prefetch_related("lines").order_by("-period", "id")


def invoice_csv(invoice: Invoice) -> str:
    """An invoice or credit note as CSV, one row per line; a draft has no number yet."""
    period = (invoice.period.lower, invoice.period.upper)
    return exports.render(
        exports.Row,
        (
            exports.row(
                invoice=invoice.number or "",
                kind=invoice.kind,
                status=invoice.status,
                period=period,
                currency=invoice.currency,
                line=line.line_no,
                credits_line=line.credits_line_no,
                sku=line.sku,
                meter=line.meter,
                quantity=line.quantity,
                num_pico=int(line.num_pico),
                den=line.den,
                amount_pico=int(line.amount_pico),
                amount_minor=line.amount_minor,
            )
            for line in invoice.lines.order_by("line_no")
        ),
    )


def invoice_facts_for(invoice: Invoice, *, line_no: int | None = None) -> list[exports.Fact]:
    """The rated events behind an invoice or one of its lines, in order of line and event."""
    with connection.cursor() as cursor:
        cursor.execute(FACTS, {"invoice": invoice.id, "line": line_no})
        return [exports.fact(row) for row in cursor.fetchall()]


def invoice_facts_csv(invoice: Invoice) -> str:
    """The rated events behind an invoice as CSV, one row per event and meter."""
    return exports.render(exports.Fact, invoice_facts_for(invoice))


def sheet_for(*, sku: str, region: str, currency: str, tenant_id: UUID | None, at: datetime) -> Sheet | None:
    """The price sheet in force at `at`, the tenant's own first; None where nothing is on sale."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT body FROM price_sheet WHERE sha256 = (SELECT sheet_at(%s, %s, %s, %s::uuid, %s))",
            [sku, region, currency, tenant_id, at],
        )
        row = cursor.fetchone()
    return None if row is None else sheet_from_body(_json(row[0]))


def terms_for(*, sku: str, region: str, tenant_id: UUID) -> Sheet:
    """What a SKU costs a tenant now, in its currency: a sheet without rates where nothing is on sale."""
    now = utcnow()
    with connection.cursor() as cursor:
        cursor.execute(TERMS, {"sku": sku, "region": region, "tenant": tenant_id, "at": now})
        currency, body = cursor.fetchone()
    return Sheet(sku, region, currency, now, {}) if body is None else sheet_from_body(_json(body))


def sku_unrated(*, sku: str, region: str, currency: str, tenant_id: UUID | None = None) -> list[str]:
    """Meters of a SKU that nothing prices now: it cannot be on sale. Empty where all are priced."""
    sheet = sheet_for(sku=sku, region=region, currency=currency, tenant_id=tenant_id, at=utcnow())
    return (sheet or Sheet(sku, region, currency, utcnow(), {})).unrated()


def sheet_ahead(sheet: Sheet, meter: str, quantity: int) -> int | None:
    """Pico-units to set aside for a quantity: at the sheet's dearest hour, rounded up; None where it has no price."""
    price = sheet.dearest(meter)
    return -(-quantity * price.num_pico // price.den) if price else None


def sheets_of(sku: str, region: str, currency: str) -> dict[bytes, Sheet]:
    """Every sheet of one key, of all owners, by the hash that names it."""
    rows = PriceSheet.objects.filter(sku=sku, region=region, currency=currency)
    return {bytes(row.sha256): _sheet(row) for row in rows}


def sheets_for_projection() -> list[Sheet]:
    """Every sheet that is in force or will be: per key and owner the latest started one and all later ones.

    A sheet with no meters says that this owner's prices end there.
    """
    now = utcnow()
    kept: list[Sheet] = []
    latest: dict[tuple[str, str, str, str | None], Sheet] = {}
    for row in PriceSheet.objects.order_by("effective_from"):
        sheet = _sheet(row)
        if sheet.effective_from <= now:
            latest[sheet.sku, sheet.region, sheet.currency, sheet.tenant_id] = sheet
        else:
            kept.append(sheet)
    return [*latest.values(), *kept]


def seconds_rated(deployment_id: UUID, rate: Rate) -> int:
    """Accelerator-seconds on the books of a deployment under one rate, corrections taken off."""
    lines = RatedLine.objects.filter(
        event__subject_id=deployment_id, meter=ACCEL_SECOND, num_pico=rate.num_pico, den=rate.den
    )
    return int(lines.aggregate(total=Sum("quantity"))["total"] or 0)


def spent_since(tenant_id: UUID, currency: str, since: datetime) -> int:
    """Usage booked since then, pico-units."""
    total = LedgerEntry.objects.filter(
        tx__tenant_id=tenant_id,
        tx__recorded_at__gte=since,
        account__kind=AccountKind.REVENUE,
        account__tenant_id=tenant_id,
        currency=currency,
    ).aggregate(total=Sum("amount"))["total"]
    return int(total or 0)


def _accruing(tenant_id: UUID, currency: str) -> int:
    now = utcnow()
    total = 0
    for span in BillableSpan.objects.filter(tenant_id=tenant_id, finished=False):
        sheet = sheet_for(sku=span.sku, region=span.region, currency=currency, tenant_id=tenant_id, at=now)
        start = span.rated_until or span.from_at
        if sheet is None or ACCEL_SECOND not in sheet.meters:
            continue
        rate = sheet.meters[ACCEL_SECOND]
        seconds = max(0, int(((span.ended_at or now) - start).total_seconds())) * span.accelerator_count
        total += div_half_even(seconds * rate.num_pico, rate.den)
    return total


def _sheet(row: PriceSheet) -> Sheet:
    if row.body is not None:
        return sheet_from_body(row.body)
    tenant = str(row.tenant_id) if row.tenant_id else None
    return Sheet(row.sku, row.region, row.currency, row.effective_from, {}, tenant)


def _json(value: Any) -> dict[str, Any]:
    """A jsonb column of a raw cursor: Django leaves it as text."""
    return dict(json.loads(value) if isinstance(value, str) else value)
