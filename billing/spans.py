"""Dedicated time: billing's copy of the facts, hour slices on the books, the next hour's money ahead."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection

from billing import holds, ledger, standing
from billing.core.slices import Slice, cut, hour_of, inner_seconds, slice_id
from billing.models import BillableSpan, UsageEvent
from billing.posting import Charge
from billing.rating import Time, facts_copy, hold_ahead, pico_ahead, price_of, time_rate
from billing.selectors import seconds_rated, sheets_of
from billing.services import deployment_subject
from kernel import ids, usage
from kernel.clock import HOUR, utcnow
from kernel.pricing import ACCEL_SECOND, Rate, Sheet, rate, total

TOPIC = "inference.billable"
# From this minute on the next hour's money is set aside too.
AHEAD_MINUTE = 50
# Every fact names its span, and LEAST and GREATEST pass over NULL: facts may come repeated and in any order.
UPSERT = """
INSERT INTO billable_span (pod_uid, tenant_id, deployment_id, endpoint_id, sku, region, pool, accelerator,
  accelerator_count, from_at, proven_at, ended_at)
VALUES (%(pod_uid)s, %(tenant_id)s, %(deployment_id)s, %(endpoint_id)s, %(sku)s, %(region)s, %(pool)s, %(accelerator)s,
  %(accelerator_count)s, %(from_at)s, %(alive)s, %(to)s)
ON CONFLICT (pod_uid, from_at) DO UPDATE SET
  proven_at = GREATEST(billable_span.proven_at, EXCLUDED.proven_at),
  ended_at = LEAST(billable_span.ended_at, EXCLUDED.ended_at)
RETURNING ended_at, rated_until
"""


def facts_take(*, limit: int = 500) -> int:
    """Copy waiting facts of inference into spans; how many. A fact that is no fact goes to quarantine."""
    return facts_copy(topic=TOPIC, limit=limit, write=_span_write)


def slices_rate(*, now: datetime | None = None) -> int:
    """Book every complete slice of every span and set the next hour's money aside; how many slices.

    Time counts up to the latest proof of life. No slice is skipped: without a price it stops there and
    says so. A repeat books nothing twice.
    """
    now = now or utcnow()
    booked = time_rate(ACCELERATORS, now=now)
    holds.deployment_holds_return(now=now)
    standing.standings_update(now=now)
    return booked


class _Rater:
    """Rates the slices of one tenant's spans in order; the seconds rated before run on in it."""

    def __init__(self, currency: str, _: datetime) -> None:
        self.currency = currency
        self._before: dict[tuple[UUID, Rate], int] = {}

    def charges(self, span: BillableSpan) -> Iterator[Charge]:
        """The span's slices that are complete and not booked; moves the span on."""
        start = span.rated_until or span.from_at
        end = span.ended_at or span.proven_at
        if end is None:
            return
        for part in cut(start, end, self._changes(span, start, end), ended=span.ended_at is not None):
            who = f"pod {span.pod_uid}"
            sheet = price_of(span, ACCEL_SECOND, currency=self.currency, at=part.start, who=who)
            if sheet is None:
                return
            booked = UsageEvent.objects.filter(
                subject_id=span.deployment_id, kind=usage.ACCEL, started_at=part.start, pod_uid=span.pod_uid
            )
            if not booked.exists():
                yield self._charge(span, part, sheet)
            span.rated_until = part.end
        span.finished = span.ended_at is not None

    def _changes(self, span: BillableSpan, start: datetime, end: datetime) -> list[datetime]:
        """Instants at which the price may change: the starts of sheets, the borders of their clock windows."""
        return [
            at
            for sheet in sheets_of(span.sku, span.region, self.currency).values()
            if sheet.tenant_id in {None, str(span.tenant_id)}
            for at in (sheet.effective_from, *sheet.borders(start, end + HOUR))
        ]

    def _charge(self, span: BillableSpan, part: Slice, sheet: Sheet) -> Charge:
        quantity = part.seconds * span.accelerator_count
        price = sheet.meters[ACCEL_SECOND]
        key = (span.deployment_id, price)
        if key not in self._before:
            self._before[key] = seconds_rated(*key)
        before = self._before[key]
        self._before[key] += quantity
        lines = tuple(rate(sheet, {ACCEL_SECOND: quantity}, seconds_before=before))
        event = usage.UsageEvent(
            event_id=slice_id(
                part,
                deployment_id=span.deployment_id,
                pod_uid=span.pod_uid,
                accelerator=span.accelerator,
                count=span.accelerator_count,
            ),
            source="slices",
            tenant_id=span.tenant_id,
            subject_id=span.deployment_id,
            kind=usage.ACCEL,
            sku=span.sku,
            region=span.region,
            currency=self.currency,
            started_at=part.start,
            ended_at=part.end,
            counts={ACCEL_SECOND: quantity},
            sheet=sheet.sha256(),
            quoted_pico=total(lines),
            provenance=usage.ENGINE_FINAL,
            finish="slice",
            endpoint_id=ids.encode(ids.ENDPOINT, span.endpoint_id),
            deployment_id=str(span.deployment_id),
            pod_uid=span.pod_uid,
            accelerator=span.accelerator,
            accelerator_count=span.accelerator_count,
        )
        subject = deployment_subject(span.deployment_id)
        return Charge(event, lines, subject, None, event.payload_sha256(), seconds_before=before)


def _ahead(spans: Sequence[BillableSpan], currency: str, now: datetime) -> None:
    """Raise each running deployment's hold to cover what is not booked yet and the time to come."""
    until = hour_of(now) + (2 if now.minute >= AHEAD_MINUTE else 1) * HOUR
    running = [span for span in spans if span.ended_at is None]
    needed: dict[UUID, int] = defaultdict(int)
    for span in running:
        first, end = inner_seconds(span.rated_until or span.from_at, until)
        seconds = max(0, int((end - first).total_seconds())) * span.accelerator_count
        needed[span.deployment_id] += pico_ahead(span, ACCEL_SECOND, seconds, currency=currency, at=now)
    for deployment_id, span in {span.deployment_id: span for span in running}.items():
        hold_ahead(span, deployment_id, currency=currency, needed_pico=needed[deployment_id], until=until, now=now)


ACCELERATORS = Time(
    BillableSpan, ("pod_uid", "from_at"), ("rated_until", "finished"), source="slices", rater=_Rater, ahead=_ahead
)


def _span_write(payload: dict[str, Any]) -> None:
    fact = _fact(payload)
    with connection.cursor() as cursor:
        cursor.execute(UPSERT, fact)
        ended_at, rated_until = cursor.fetchone()
    if ended_at and rated_until and ended_at < rated_until:
        pod_uid = fact["pod_uid"]
        ledger.alarm(
            key=f"billed-beyond:{pod_uid}:{fact['from_at'].isoformat()}",
            sentence=f"pod {pod_uid} is billed until {rated_until.isoformat()} and ended at {ended_at.isoformat()}; "
            "correct its last slice",
        )


def _fact(payload: dict[str, Any]) -> dict[str, Any]:
    """The payload as parameters of UPSERT. KeyError, ValueError or TypeError where it is none."""
    at, from_at = (datetime.fromisoformat(payload[name]) for name in ("at", "from_at"))
    if payload["event"] not in {"from", "alive", "to"}:
        raise ValueError(f"event {payload['event']!r}")
    if at.tzinfo is None or from_at.tzinfo is None:
        raise ValueError("an instant has no zone")
    names = ("pod_uid", "tenant_id", "deployment_id", "endpoint_id")
    return {
        **{name: UUID(payload[name]) for name in names},
        **{name: str(payload[name]) for name in ("sku", "region", "accelerator")},
        "pool": str(payload.get("pool", "")),  # a fact from before facts named theirs is of none
        "accelerator_count": int(payload["accelerator_count"]),
        "from_at": from_at,
        **{word: at if payload["event"] == word else None for word in ("alive", "to")},
    }
