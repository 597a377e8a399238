"""Ingest: what gateways journalled becomes usage on the books, exactly once, whatever it holds."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from django.db import DatabaseError, OperationalError, connection, transaction

from billing import ledger
from billing.core import judge
from billing.core.payload import parse
from billing.models import Quarantine, ReceiptTree
from billing.posting import Charge, charges_post, tenant_lock
from billing.selectors import sheets_of
from billing.services import accounts_open
from kernel.clock import utcnow
from kernel.pricing import Sheet
from kernel.usage import UsageEvent
from tenants.models import Tenant

Then = Callable[[], object]
SheetsOf = Callable[[str, str, str], Mapping[bytes, Sheet]]
# One index each: an OR of the three would read the whole table.
BOOKED = """
SELECT event_id, payload_sha256, subject_id, attempt, gateway_id, boot_id, journal_seq FROM usage_event
WHERE event_id = ANY(%(events)s) AND journal_seq IS NOT NULL
UNION ALL
SELECT event_id, payload_sha256, subject_id, attempt, gateway_id, boot_id, journal_seq FROM usage_event
WHERE subject_id = ANY(%(subjects)s) AND kind = 'tokens' AND provenance <> 'correction'
UNION ALL
SELECT event_id, payload_sha256, subject_id, attempt, gateway_id, boot_id, journal_seq FROM usage_event
JOIN unnest(%(gateways)s::text[], %(boots)s::uuid[], %(numbers)s::bigint[]) AS batch (gateway_id, boot_id, journal_seq)
USING (gateway_id, boot_id, journal_seq)
"""


@dataclass(frozen=True, slots=True)
class Journalled:
    """Record `seq` of a boot's journal as it came, not believed yet."""

    gateway_id: str
    boot_id: UUID
    seq: int
    payload: Any

    @property
    def place(self) -> judge.Place:
        """Which record of which journal this is."""
        return self.gateway_id, self.boot_id, self.seq


Parsed = tuple[Journalled, UsageEvent | judge.Refused]


@dataclass(slots=True)
class Ingested:
    """What a batch did: events booked, repeats without effect, records set aside."""

    booked: int = 0
    repeated: int = 0
    quarantined: int = 0


def events_ingest(batch: Sequence[Journalled], *, then: Then | None = None, now: datetime | None = None) -> Ingested:
    """Book a batch: one transaction per tenant and currency; `then` runs inside the last of them.

    A repeat has no effect. What contradicts an earlier event, is impossible or is priced otherwise than
    here goes to quarantine, where its journal number counts as delivered.
    """
    groups: dict[tuple[str, str], list[Parsed]] = defaultdict(list)
    for item in batch:
        try:
            event: UsageEvent | judge.Refused = parse(item.payload)
        except judge.Refused as refusal:
            event = refusal
        key = (str(event.tenant_id), event.currency) if isinstance(event, UsageEvent) else ("", "")
        groups[key].append((item, event))
    result = Ingested()
    parts = [groups[key] for key in sorted(groups)] or [[]]
    sheets = cache(sheets_of)
    for index, part in enumerate(parts, 1):
        _book(part, sheets, now or utcnow(), then if index == len(parts) else None, result)
    return result


def record_quarantine(item: Journalled, *, reason: str, event: UsageEvent | None = None) -> None:
    """Set a record aside whole, with the reason, and raise the alarm; a repeat is no second row."""
    reason = "".join(char if char.isprintable() else "?" for char in reason)
    row = Quarantine(
        tenant_id=event.tenant_id if event else None,
        event_id=event.event_id if event else None,
        reason=reason,
        payload=_kept(item.payload),
        gateway_id=item.gateway_id,
        boot_id=item.boot_id,
        journal_seq=item.seq,
    )
    Quarantine.objects.bulk_create([row], ignore_conflicts=True)
    where = f"{item.gateway_id}/{item.boot_id}/{item.seq}"
    ledger.alarm(key=f"quarantine:{where}", sentence=f"journal record {where} is in quarantine: {reason}")


def _kept(payload: Any) -> str:
    try:
        return json.dumps(payload)
    except RecursionError:
        return "nested too deeply to be kept"


def _book(items: Sequence[Parsed], sheets: SheetsOf, now: datetime, then: Then | None, result: Ingested) -> None:
    """One transaction; if the database refuses it, one per record: a poisoned record stops no other."""
    try:
        with transaction.atomic():
            done = _post(items, sheets, now)
            if then:
                then()
    except OperationalError:
        raise
    except DatabaseError as error:
        if not items:
            raise
        if len(items) == 1:
            with transaction.atomic():
                record_quarantine(items[0][0], reason=f"refused by the database: {str(error).splitlines()[0]}")
                if then:
                    then()
            result.quarantined += 1
            return
        for item in items[:-1]:
            _book([item], sheets, now, None, result)
        _book(items[-1:], sheets, now, then, result)
        return
    result.booked += done.booked
    result.repeated += done.repeated
    result.quarantined += done.quarantined


def _post(items: Sequence[Parsed], sheets: SheetsOf, now: datetime) -> Ingested:
    """Sort out repeats and what must be refused, book the rest, in the caller's transaction."""
    result = Ingested()
    events = [(item, event) for item, event in items if isinstance(event, UsageEvent)]
    tree: ReceiptTree | None = None
    if events:
        tenant_id, currency = events[0][1].tenant_id, events[0][1].currency
        if Tenant.objects.filter(id=tenant_id).exists():
            accounts_open(tenant_id=tenant_id, currency=currency)
            tree = tenant_lock(tenant_id=tenant_id)
    known = judge.known(_booked(events))
    charges: list[Charge] = []
    for item, event in items:
        if isinstance(event, judge.Refused) or tree is None:
            reason = str(event) if isinstance(event, judge.Refused) else f"there is no tenant {event.tenant_id}"
            record_quarantine(item, reason=reason)
            result.quarantined += 1
            continue
        try:
            payload = event.payload_sha256()
            if known.repeats(event, payload, item.place):
                result.repeated += 1
                continue
            lines = judge.price(event, sheets(event.sku, event.region, event.currency), now=now)
        except judge.Refused as refusal:
            record_quarantine(item, reason=str(refusal), event=event)
            result.quarantined += 1
            continue
        known.add(event, payload, item.place)
        subject = f"gateway:{event.purse}:{event.region}"
        charges.append(Charge(event, lines, subject, event.generation or 0, payload, journal=item.place))
    if tree is not None and charges:
        first, last = charges[0].journal, charges[-1].journal
        charges_post(tree=tree, currency=charges[0].event.currency, charges=charges, source_id=f"{first}-{last}")
        result.booked = len(charges)
    return result


def _booked(parsed: Sequence[tuple[Journalled, UsageEvent]]) -> list[tuple[Any, ...]]:
    """Rows on the books that share an id, a request or a journal number with the batch."""
    places = [item.place for item, _ in parsed]
    params: dict[str, Any] = {
        "events": [event.event_id for _, event in parsed],
        "subjects": [event.subject_id for _, event in parsed],
        "gateways": [gateway_id for gateway_id, _, _ in places],
        "boots": [boot_id for _, boot_id, _ in places],
        "numbers": [seq for _, _, seq in places],
    }
    with connection.cursor() as cursor:
        cursor.execute(BOOKED, params)
        return list(cursor.fetchall())
