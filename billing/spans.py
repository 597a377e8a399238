"""Dedicated time: billing's copy of the facts, hour slices on the books, the next hour's money ahead."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import DatabaseError, DataError, IntegrityError, OperationalError, connection, transaction

from billing import holds, ledger, recall, standing
from billing.core.slices import Slice, cut, hour_of, inner_seconds, slice_id
from billing.models import BillableSpan, Hold, Quarantine, UsageEvent
from billing.posting import Charge, charges_post, tenant_lock
from billing.selectors import price_ahead, seconds_rated, sheet_for, sheets_of
from billing.services import accounts_open, deployment_hold_fill, deployment_subject
from kernel import ids, usage
from kernel.clock import HOUR, utcnow
from kernel.pricing import ACCEL_SECOND, Rate, Sheet, rate, total
from tenants import outbox
from tenants.selectors import tenant_get

TOPIC = "inference.billable"
# From this minute on the next hour's money is set aside too.
AHEAD_MINUTE = 50
# Every fact names its span, and LEAST and GREATEST pass over NULL: facts may come repeated and in any order.
UPSERT = """
INSERT INTO billable_span (pod_uid, tenant_id, deployment_id, endpoint_id, sku, region, accelerator,
  accelerator_count, from_at, proven_at, ended_at)
VALUES (%(pod_uid)s, %(tenant_id)s, %(deployment_id)s, %(endpoint_id)s, %(sku)s, %(region)s, %(accelerator)s,
  %(accelerator_count)s, %(from_at)s, %(alive)s, %(to)s)
ON CONFLICT (pod_uid, from_at) DO UPDATE SET
  proven_at = GREATEST(billable_span.proven_at, EXCLUDED.proven_at),
  ended_at = LEAST(billable_span.ended_at, EXCLUDED.ended_at)
RETURNING ended_at, rated_until
"""


def facts_take(*, limit: int = 500) -> int:
    """Copy waiting facts of inference into spans; how many. A fact that is no fact goes to quarantine."""
    return facts_copy(topic=TOPIC, limit=limit, write=_span_write)


@transaction.atomic
def facts_copy(*, topic: str, limit: int, write: Callable[[dict[str, Any]], None]) -> int:
    """Hand the waiting facts of a topic to `write`, oldest first; how many.

    One that `write` refuses (KeyError, ValueError, TypeError) or the database does (no such tenant, a number out
    of range) goes to quarantine, with an alarm, and stops no other.
    """
    rows = outbox.take(topic=topic, limit=limit)
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # not at the commit, which is of all facts
    for row in rows:
        try:
            with transaction.atomic():
                write(row.payload)
        except (KeyError, ValueError, TypeError, IntegrityError, DataError) as error:
            reason = f"no billable fact: {error!r}"
            Quarantine.objects.create(reason=reason, payload=json.dumps(row.payload))
            ledger.alarm(key=f"quarantine:{row.dedupe_key}", sentence=f"{row.dedupe_key}: {reason}")
    outbox.mark(rows)
    return len(rows)


def slices_rate(*, now: datetime | None = None) -> int:
    """Book every complete slice of every span and set the next hour's money aside; how many slices.

    Time counts up to the latest proof of life. No slice is skipped: without a price it stops there and
    says so. A repeat books nothing twice.
    """
    now = now or utcnow()
    running = BillableSpan.objects.filter(finished=False).order_by("tenant_id")
    booked = tenants_rate(running.values_list("tenant_id", flat=True).distinct(), _tenant_rate, now)
    holds.deployment_holds_return(now=now)
    standing.standings_update(now=now)
    return booked


def tenants_rate(tenant_ids: Iterable[UUID], rate_one: Callable[[UUID, datetime], int], now: datetime) -> int:
    """Rate each tenant in a transaction of its own; the sum. What the database refuses of one stops no other."""
    done = 0
    for tenant_id in tenant_ids:
        try:
            done += rate_one(tenant_id, now)
        except OperationalError:
            raise
        except DatabaseError as error:
            said = str(error).splitlines()[0]
            ledger.alarm(key=f"unrated:{tenant_id}:{now:%Y-%m-%dT%H}", sentence=f"{tenant_id} is not rated: {said}")
    return done


@transaction.atomic
def _tenant_rate(tenant_id: UUID, now: datetime) -> int:
    tree = tenant_lock(tenant_id=tenant_id)
    currency = tenant_get(tenant_id).currency
    accounts_open(tenant_id=tenant_id, currency=currency)
    spans = list(
        BillableSpan.objects.select_for_update()
        .filter(tenant_id=tenant_id, finished=False)
        .order_by("pod_uid", "from_at")
    )
    rater = _Rater(currency)
    charges = [charge for span in spans for charge in rater.charges(span)]
    if charges:
        charges_post(tree=tree, currency=currency, charges=charges, source_id="slices")
    for span in spans:
        span.save(update_fields=["rated_until", "finished"])
    _ahead([span for span in spans if span.ended_at is None], currency, now)
    return len(charges)


class _Rater:
    """Rates the slices of one tenant's spans in order; the seconds rated before run on in it."""

    def __init__(self, currency: str) -> None:
        self.currency = currency
        self._before: dict[tuple[UUID, Rate], int] = {}

    def charges(self, span: BillableSpan) -> Iterable[Charge]:
        """The span's slices that are complete and not booked; moves the span on."""
        start = span.rated_until or span.from_at
        end = span.ended_at or span.proven_at
        if end is None:
            return
        for part in cut(start, end, self._changes(span, start, end), ended=span.ended_at is not None):
            sheet = sheet_for(
                sku=span.sku,
                region=span.region,
                currency=self.currency,
                tenant_id=span.tenant_id,
                at=part.start,
            )
            sheet = sheet and sheet.at(part.start)
            if sheet is None or ACCEL_SECOND not in sheet.meters:
                at = part.start.isoformat()
                ledger.alarm(
                    key=f"unrated:{span.pod_uid}:{at}",
                    sentence=f"{span.sku} has no price in {self.currency} at {at}: pod {span.pod_uid} is not billed on",
                )
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


def _ahead(spans: Iterable[BillableSpan], currency: str, now: datetime) -> None:
    """Raise each running deployment's hold to cover what is not booked yet and the time to come."""
    until = hour_of(now) + (2 if now.minute >= AHEAD_MINUTE else 1) * HOUR
    needed: dict[tuple[UUID, UUID, str], int] = defaultdict(int)
    for span in spans:
        first, end = inner_seconds(span.rated_until or span.from_at, until)
        pico = price_ahead(
            sku=span.sku,
            region=span.region,
            currency=currency,
            tenant_id=span.tenant_id,
            meter=ACCEL_SECOND,
            quantity=max(0, int((end - first).total_seconds())) * span.accelerator_count,
            at=now,
        )
        needed[span.tenant_id, span.deployment_id, span.sku] += pico or 0
    for (tenant_id, deployment_id, sku), pico in needed.items():
        hold_ahead(
            tenant_id=tenant_id,
            currency=currency,
            deployment_id=deployment_id,
            sku=sku,
            needed_pico=pico,
            until=until,
            now=now,
        )


def hold_ahead(
    *, tenant_id: UUID, currency: str, deployment_id: UUID, sku: str, needed_pico: int, until: datetime, now: datetime
) -> None:
    """Raise a live hold to what is needed `until` then.

    Where money is short, an alarm: gateways are asked for what they have idle, and the shortfall is kept,
    which suspends the tenant if it lasts.
    """
    if not Hold.objects.filter(subject=deployment_subject(deployment_id), sealed_at=None).exists():
        return
    missing = deployment_hold_fill(
        tenant_id=tenant_id, currency=currency, deployment_id=deployment_id, sku=sku, needed_pico=needed_pico
    )
    standing.shortfall_note(tenant_id=tenant_id, deployment_id=deployment_id, missing_pico=missing, now=now)
    if missing:
        recall.ask(tenant_id=tenant_id, currency=currency, amount_pico=missing)
        ledger.alarm(
            key=f"hold-short:{deployment_id}:{until.isoformat()}",
            sentence=f"deployment {deployment_id} lacks {missing} pico {currency} for the time until {until}",
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
        "accelerator_count": int(payload["accelerator_count"]),
        "from_at": from_at,
        **{word: at if payload["event"] == word else None for word in ("alive", "to")},
    }
