"""Corrections: usage taken back by a new event at the original rate; what was booked never changes.

One that comes before the event that it corrects is parked in quarantine until that is on the books.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Sum

from billing.core.corrections import TooMuch, check_deltas, reverse
from billing.core.judge import AHEAD, OLDEST, out_of_time
from billing.models import LedgerEntry, Operation, PriceSheet, Quarantine, RatedLine, UsageEvent
from billing.posting import Charge, correction_post, taken_by, tenant_lock
from billing.selectors import seconds_rated
from kernel import usage
from kernel.clock import utcnow
from kernel.ids import new_id
from kernel.money import to_string
from kernel.pricing import Rate, total
from kernel.problems import CONFLICT, INVALID_PARAMETER, NOT_FOUND, Problem
from tenants.services import audit_write

# Of a parked correction: the event that it waits for is on the books.
BOOKED = Exists(UsageEvent.objects.filter(event_id=OuterRef("corrects")))


class NotYet(LookupError):
    """The usage event to correct is not on the books."""


def correction_park(*, arguments: Mapping[str, Any], actor: str) -> Quarantine:
    """Keep a correction {event_id, counts, reason} for a usage event that may still come.

    Problems: not_found (an event of that id cannot come any more, or not yet); invalid_parameter (reason, counts).
    """
    event_id = UUID(arguments["event_id"])
    if wrong := out_of_time(event_id, utcnow()):
        raise Problem(NOT_FOUND, f"there is no usage event {event_id}, and none is waited for: {wrong}")
    _check_reason(arguments["reason"])
    try:
        check_deltas(arguments["counts"])
    except ValueError as error:
        raise Problem(INVALID_PARAMETER, str(error), param="counts") from error
    return Quarantine.objects.create(
        reason=f"a correction by {actor} waits for usage event {event_id}",
        payload=json.dumps({"arguments": dict(arguments), "actor": actor}),
        corrects=event_id,
    )


def parked_list(*, now: datetime) -> "QuerySet[Quarantine]":
    """Parked corrections that nobody asked for again, the oldest first; those whose event came are `BOOKED`."""
    return Quarantine.objects.filter(
        ~Exists(Operation.objects.filter(id=OuterRef("id"))), corrects__isnull=False, at__gt=now - OLDEST - AHEAD
    ).order_by("at")


@transaction.atomic
def usage_correct(*, event_id: UUID, counts: Mapping[str, int], actor: str, reason: str) -> UUID:
    """Take quantities of a booked event back: `counts` are negative deltas by meter. The correction's event id.

    The money returns to the accounts that paid. Where an issued invoice bills the event, a credit note has to
    follow (`credit_note_issue`); else its draft shrinks. Problems: not_found; invalid_parameter (reason,
    counts); conflict (earlier corrections left less than that).
    """
    _check_reason(reason)
    original = UsageEvent.objects.filter(event_id=event_id).exclude(provenance=usage.CORRECTION).first()
    if original is None:
        raise Problem(NOT_FOUND, f"there is no usage event {event_id} that can be corrected")
    tree = tenant_lock(tenant_id=original.tenant_id)
    booked = list(RatedLine.objects.filter(event_id=event_id))
    try:
        lines, seconds_before = reverse(
            counts,
            rates={line.meter_id: Rate(int(line.num_pico), line.den) for line in booked},
            left=_left(event_id),
            rated=lambda rate: seconds_rated(original.subject_id, rate),
        )
    except TooMuch as error:
        raise Problem(CONFLICT, str(error), param="counts") from error
    except ValueError as error:
        raise Problem(INVALID_PARAMETER, str(error), param="counts") from error
    currency = PriceSheet.objects.get(sha256=original.sheet_id).currency
    event = replace(
        _as_event(original, currency),
        event_id=new_id(),
        source="operator",
        counts=dict(counts),
        quoted_pico=total(lines),
        provenance=usage.CORRECTION,
        finish="correction",
    )
    charge = Charge(
        event, lines, "", None, event.payload_sha256(), seconds_before=seconds_before, corrects=original.event_id
    )
    paid_by = next((line.tx_id for line in booked if line.tx_id), None)
    paid = Q(tx_id=paid_by) | Q(tx__kind="correction", tx__source_id=str(paid_by))
    taken = taken_by(LedgerEntry.objects.filter(paid)) if paid_by else {}
    correction_post(tree=tree, currency=currency, charge=charge, taken=taken, source_id=str(paid_by))
    audit_write(
        actor=actor,
        tenant_id=original.tenant_id,
        action="usage.corrected",
        detail={
            "event": str(event_id),
            "correction": str(event.event_id),
            "counts": dict(counts),
            "amount": to_string(charge.cost),
            "currency": currency,
            "reason": reason,
        },
    )
    return event.event_id


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise Problem(INVALID_PARAMETER, "reason is a sentence that the audit log keeps", param="reason")


def _left(event_id: UUID) -> dict[str, int]:
    """Meter → what is left of an event after its corrections."""
    lines = RatedLine.objects.filter(event_id=event_id) | RatedLine.objects.filter(event__corrects=event_id)
    return dict(lines.values_list("meter_id").annotate(total=Sum("quantity")))


def _as_event(row: UsageEvent, currency: str) -> usage.UsageEvent:
    """The booked row as the event that it was; what only its journal knew stays away."""
    return usage.UsageEvent(
        event_id=row.event_id,
        source=row.source,
        tenant_id=row.tenant_id,
        subject_id=row.subject_id,
        kind=row.kind,
        sku=row.sku,
        region=row.region,
        currency=currency,
        started_at=row.started_at,
        ended_at=row.ended_at,
        counts=row.counts,
        sheet=bytes(row.sheet_id),
        quoted_pico=int(row.quoted_pico),
        provenance=row.provenance,
        finish=row.finish,
        endpoint_id=row.endpoint_id,
        deployment_id=row.deployment_id,
        api_key_id=row.api_key_id,
        attempt=row.attempt,
        pod_uid=row.pod_uid,
        accelerator=row.accelerator,
        accelerator_count=row.accelerator_count,
    )
