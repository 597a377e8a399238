"""Rebates: what packages and the tiers of a price sheet give back on a month, as events and transactions of their own.

A draw is always the quoted cost; a rebate follows. It is worked out from everything that a month used of a SKU,
and the difference to what was given before is booked, so it may be brought up to date at any time.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Q, QuerySet, Sum

from billing.models import LedgerEntry, PriceSheet, RatedLine, UsageEvent
from billing.packages import covered_pico
from billing.posting import Charge, correction_post, taken_by, tenant_lock
from billing.selectors import sheet_for
from kernel import usage
from kernel.clock import utcnow
from kernel.ids import derived_id
from kernel.pricing import PACKAGE, REBATE, rebate
from kernel.pricing import RatedLine as Line

_INSTANT = timedelta(microseconds=1)


@transaction.atomic
def rebates_post(
    *, tenant_id: UUID, currency: str, period: tuple[datetime, datetime], now: datetime | None = None
) -> int:
    """Book what packages, and the tiers in force at the end of a month (or now), still owe on it or gave too much.

    How many events. Tiers count what packages leave. It goes to the accounts that paid for the use: credit that
    was given does not turn into own money.
    """
    tree = tenant_lock(tenant_id=tenant_id)
    charges = list(_charges(tenant_id, currency, period, now or utcnow()))
    for charge in charges:
        lines = _lines(charge.event, period)
        # What is given goes where the month's use was paid from; what was too much comes from where it went.
        of = lines.exclude(meter=PACKAGE) if charge.cost < 0 else lines.filter(meter=REBATE)
        taken = taken_by(LedgerEntry.objects.filter(tx__in=of.values("tx")))
        source_id = str(charge.event.subject_id)
        correction_post(tree=tree, currency=currency, charge=charge, taken=taken, source_id=source_id)
    return len(charges)


def _charges(tenant_id: UUID, currency: str, period: tuple[datetime, datetime], now: datetime) -> Iterator[Charge]:
    start, end = period
    tiered = PriceSheet.objects.filter(currency=currency, body__has_key="tiers").values("sku")
    used = (
        RatedLine.objects.filter(
            event__tenant_id=tenant_id,
            event__sku__in=tiered,
            event__sheet__currency=currency,
            event__started_at__gte=start,
            event__started_at__lt=end,
        )
        .values_list("event__sku", "event__region")
        .annotate(
            spent=Sum("amount", filter=~Q(event__kind=usage.REBATE), default=0),
            given=Sum("amount", filter=Q(meter=REBATE), default=0),
        )
        .order_by("event__sku", "event__region")
    )
    for sku, region, spent, given in used:
        subject = derived_id(start, usage.REBATE, str(tenant_id), sku, region, currency)
        before = UsageEvent.objects.filter(subject_id=subject, kind=usage.REBATE).count()
        # Each in an instant of its own: of a month that is over, the last ones.
        at = min(now, end - (before + 1) * _INSTANT)
        sheet = sheet_for(sku=sku, region=region, currency=currency, tenant_id=tenant_id, at=at)
        covered = covered_pico(tenant_id=tenant_id, sku=sku, region=region, currency=currency, period=period)
        due = covered + (rebate(sheet.tiers, int(spent) - covered) if sheet else 0)
        amount = -due - int(given)
        if sheet is None or amount == 0:
            continue
        line = Line(REBATE, amount, 1, 1, amount)
        event = usage.UsageEvent(
            event_id=derived_id(at, str(subject), str(before)),
            source="rebates",
            tenant_id=tenant_id,
            subject_id=subject,
            kind=usage.REBATE,
            sku=sku,
            region=region,
            currency=currency,
            started_at=at,
            ended_at=at,
            counts={REBATE: amount},
            sheet=sheet.sha256(),
            quoted_pico=amount,
            provenance=usage.ESTIMATED,
            finish="month",
        )
        yield Charge(event, (line,), "", None, event.payload_sha256())


def _lines(event: usage.UsageEvent, period: tuple[datetime, datetime]) -> "QuerySet[RatedLine]":
    """The month's use of the rebate's SKU, and what came back of it before."""
    start, end = period
    return RatedLine.objects.filter(
        event__tenant_id=event.tenant_id,
        event__sku=event.sku,
        event__region=event.region,
        event__sheet__currency=event.currency,
        event__started_at__gte=start,
        event__started_at__lt=end,
    )
