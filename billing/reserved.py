"""The reserved rung's money: kTPM that an endpoint keeps for itself, billed by the UTC day.

A day begun is billed whole, as the clouds bill a kTPM-day: a reservation is charged as it begins and at every
midnight after that, at the price of that instant. Within a day the highest reservation counts: more kTPM are
charged as they are added, fewer show from the next midnight on, and a pause and return costs nothing more.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Sum

from billing.core.slices import charges_due
from billing.models import RatedLine, ReservedSpan
from billing.posting import Charge
from billing.rating import Time, facts_copy, hold_ahead, pico_ahead, price_of, time_rate
from billing.services import deployment_subject
from kernel import ids, usage
from kernel.clock import DAY, day_of, utcnow
from kernel.pricing import KTPM_DAY, Sheet, rate, total

TOPIC = "inference.reserved"
# So long before midnight the next day's money is set aside.
AHEAD = timedelta(minutes=10)


def facts_take(*, limit: int = 500) -> int:
    """Copy waiting facts of reservations; how many. A fact that is no fact goes to quarantine."""
    return facts_copy(topic=TOPIC, limit=limit, write=_span_write)


def days_rate(*, now: datetime | None = None) -> int:
    """Book every day that began, of every reservation, and set the next day's money aside; how many charges.

    Catching up skips no day: without a price it stops there and says so. A repeat books nothing twice.
    """
    return time_rate(RESERVATIONS, now=now or utcnow())


class _Rater:
    """Charges the days of one tenant's reservations in order; what a day has been charged for runs on in it."""

    def __init__(self, currency: str, now: datetime) -> None:
        self._currency, self._now = currency, now
        self._charged: dict[tuple[UUID, datetime], int] = defaultdict(int)

    def charges(self, span: ReservedSpan) -> Iterator[Charge]:
        """The span's days that began and are not booked; moves the span on."""
        for at in charges_due(span.due_at, ended_at=span.ended_at, now=self._now):
            who = f"endpoint {span.endpoint_id}"
            sheet = price_of(span, KTPM_DAY, currency=self._currency, at=at, who=who)
            if sheet is None:
                return
            more = span.ktpm - self._before(span.endpoint_id, day_of(at))
            if more > 0:
                self._charged[span.endpoint_id, day_of(at)] += more
                yield self._charge(span, at, more, sheet)
            span.due_at = day_of(at) + DAY
        span.finished = span.ended_at is not None and span.due_at >= span.ended_at

    def _before(self, endpoint_id: UUID, day: datetime) -> int:
        """kTPM that this day has been charged for."""
        lines = RatedLine.objects.filter(
            event__subject_id=endpoint_id,
            event__kind=usage.RESERVED,
            event__corrects=None,
            event__started_at__gte=day,
            event__started_at__lt=day + DAY,
        )
        booked = lines.aggregate(total=Sum("quantity", default=0))["total"]
        return int(booked) + self._charged[endpoint_id, day]

    def _charge(self, span: ReservedSpan, at: datetime, ktpm: int, sheet: Sheet) -> Charge:
        counts = {KTPM_DAY: ktpm}
        lines = tuple(rate(sheet, counts))
        event = usage.UsageEvent(
            event_id=ids.derived_id(at, usage.RESERVED, str(span.endpoint_id), at.isoformat()),
            source="reserved",
            tenant_id=span.tenant_id,
            subject_id=span.endpoint_id,
            kind=usage.RESERVED,
            sku=span.sku,
            region=span.region,
            currency=self._currency,
            started_at=at,
            ended_at=day_of(at) + DAY,
            counts=counts,
            sheet=sheet.sha256(),
            quoted_pico=total(lines),
            provenance=usage.ENGINE_FINAL,
            finish="day",
            endpoint_id=ids.encode(ids.ENDPOINT, span.endpoint_id),
        )
        return Charge(event, lines, deployment_subject(span.endpoint_id), None, event.payload_sha256())


def _ahead(spans: Sequence[ReservedSpan], currency: str, now: datetime) -> None:
    """Set the next day of each running reservation aside, from shortly before its midnight on."""
    for span in spans:
        if span.ended_at is not None or now < span.due_at - AHEAD:
            continue
        pico = pico_ahead(span, KTPM_DAY, span.ktpm, currency=currency, at=span.due_at)
        until = span.due_at + DAY
        hold_ahead(span, span.endpoint_id, currency=currency, needed_pico=pico, until=until, now=now)


RESERVATIONS = Time(
    ReservedSpan, ("from_at", "endpoint_id"), ("due_at", "finished"), source="reserved", rater=_Rater, ahead=_ahead
)


def _span_write(payload: dict[str, Any]) -> None:
    """One fact into a span. KeyError, ValueError or TypeError where it is none."""
    at = datetime.fromisoformat(payload["at"])
    if at.tzinfo is None:
        raise ValueError("at has no zone")
    endpoint_id = UUID(payload["endpoint_id"])
    if payload["event"] == "from":
        ktpm = int(payload["ktpm"])
        if ktpm < 1:
            raise ValueError(f"ktpm {ktpm}")
        ReservedSpan.objects.get_or_create(
            endpoint_id=endpoint_id,
            from_at=at,
            defaults={
                "tenant_id": UUID(payload["tenant_id"]),
                "sku": str(payload["sku"]),
                "region": str(payload["region"]),
                "pool": str(payload.get("pool", "")),
                "ktpm": ktpm,
                "due_at": at,
            },
        )
    elif payload["event"] == "to":
        begun = ReservedSpan.objects.filter(endpoint_id=endpoint_id, from_at__lte=at)
        span = begun.order_by("-from_at").first()
        if span is None:
            raise ValueError(f"nothing of {endpoint_id} began before {at.isoformat()}")
        begun.filter(from_at=span.from_at, ended_at=None).update(ended_at=at)
    else:
        raise ValueError(f"event {payload['event']!r}")
