"""The frame that all rated time shares: facts copied, spans rated tenant by tenant, the time to come set aside."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from django.db import DatabaseError, DataError, IntegrityError, OperationalError, connection, transaction
from django.db.models import Model

from billing import ledger, recall, standing
from billing.models import Hold, Quarantine
from billing.posting import Charge, charges_post, tenant_lock
from billing.selectors import purses_paying, sheet_ahead, sheet_for
from billing.services import accounts_open, deployment_hold_fill, deployment_subject
from kernel.pricing import Sheet
from tenants import outbox
from tenants.selectors import tenant_get


class Rater(Protocol):
    """Charges the spans of one tenant in order; what it has charged before runs on in it."""

    def charges(self, span: Any) -> Iterator[Charge]:
        """What is complete of the span and not booked; moves the span on."""


@dataclass(frozen=True, slots=True)
class Time:
    """One kind of time: the spans' model, their order, the columns that rating moves, who rates and sets aside."""

    spans: type[Model]
    order: tuple[str, str]
    moved: tuple[str, ...]
    source: str
    rater: Callable[[str, datetime], Rater]
    ahead: Callable[[Sequence[Any], str, datetime], None]


def time_rate(time: Time, *, now: datetime) -> int:
    """Book what is due of every span, each tenant in a transaction of its own; how many charges.

    What the database refuses of one tenant stops no other.
    """
    running = time.spans._default_manager.filter(finished=False).order_by("tenant_id")
    done = 0
    for tenant_id in running.values_list("tenant_id", flat=True).distinct():
        try:
            done += _tenant_rate(time, tenant_id, now)
        except OperationalError:
            raise
        except DatabaseError as error:
            said = str(error).splitlines()[0]
            ledger.alarm(key=f"unrated:{tenant_id}:{now:%Y-%m-%dT%H}", sentence=f"{tenant_id} is not rated: {said}")
    return done


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


def price_of(span: Any, meter: str, *, currency: str, at: datetime, who: str) -> Sheet | None:
    """The sheet that prices a span's meter at `at`; None, with an alarm that `who` is not billed on, for no price."""
    sheet = sheet_for(sku=span.sku, region=span.region, currency=currency, tenant_id=span.tenant_id, at=at)
    sheet = sheet and sheet.at(at)
    if sheet is not None and meter in sheet.meters:
        return sheet
    ledger.alarm(
        key=f"unrated:{who}:{at.isoformat()}",
        sentence=f"{span.sku} has no price in {currency} at {at.isoformat()}: {who} is not billed on",
    )
    return None


def pico_ahead(span: Any, meter: str, quantity: int, *, currency: str, at: datetime) -> int:
    """What a quantity of a span's time to come costs at most, by the sheet in force; 0 where that has no price."""
    sheet = sheet_for(sku=span.sku, region=span.region, currency=currency, tenant_id=span.tenant_id, at=at)
    return (sheet and sheet_ahead(sheet, meter, quantity)) or 0


def hold_ahead(span: Any, subject_id: UUID, *, currency: str, needed_pico: int, until: datetime, now: datetime) -> None:
    """Raise the live hold of a span's deployment or endpoint to what is needed `until` then.

    Where money is short, an alarm: gateways are asked for what they have idle, and the shortfall is kept,
    which suspends the tenant if it lasts.
    """
    if not Hold.objects.filter(subject=deployment_subject(subject_id), sealed_at=None).exists():
        return
    purses = purses_paying(tenant_id=span.tenant_id, currency=currency, sku=span.sku, pool=span.pool)
    missing = deployment_hold_fill(
        tenant_id=span.tenant_id, currency=currency, deployment_id=subject_id, purses=purses, needed_pico=needed_pico
    )
    standing.shortfall_note(tenant_id=span.tenant_id, deployment_id=subject_id, missing_pico=missing, now=now)
    if missing:
        recall.ask(tenant_id=span.tenant_id, currency=currency, purses=purses, amount_pico=missing)
        ledger.alarm(
            key=f"hold-short:{subject_id}:{until.isoformat()}",
            sentence=f"deployment {subject_id} lacks {missing} pico {currency} for the time until {until}",
        )


@transaction.atomic
def _tenant_rate(time: Time, tenant_id: UUID, now: datetime) -> int:
    tree = tenant_lock(tenant_id=tenant_id)
    currency = tenant_get(tenant_id).currency
    accounts_open(tenant_id=tenant_id, currency=currency)
    found = time.spans._default_manager.select_for_update().filter(tenant_id=tenant_id, finished=False)
    spans = list(found.order_by(*time.order))
    rater = time.rater(currency, now)
    charges = [charge for span in spans for charge in rater.charges(span)]
    if charges:
        charges_post(tree=tree, currency=currency, charges=charges, source_id=time.source)
    for span in spans:
        span.save(update_fields=time.moved)
    time.ahead(spans, currency, now)
    return len(charges)
