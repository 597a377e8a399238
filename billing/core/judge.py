"""Whether a journalled event may be booked: against itself, the price in force and what is on the books."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from kernel import pricing, wire
from kernel.clock import from_ms
from kernel.ids import id_time_ms
from kernel.usage import ENGINE_FINAL, ENGINE_PARTIAL, ESTIMATED, TOKENS, UsageEvent

OLDEST = timedelta(days=35)
AHEAD = timedelta(minutes=5)
PROVENANCES = {ENGINE_FINAL, ENGINE_PARTIAL, ESTIMATED}
MAX_COUNT = 2**40
NOT_OF_GATEWAYS = {pricing.ACCEL_SECOND, pricing.KTPM_DAY, pricing.REBATE, pricing.PACKAGE}

Place = tuple[str, UUID, int]


class Refused(ValueError):
    """Why an event cannot be booked: the sentence that stands in quarantine."""


def price(event: UsageEvent, sheets: Mapping[bytes, pricing.Sheet], *, now: datetime) -> tuple[pricing.RatedLine, ...]:
    """The rated lines of a request's event, by the sheets of its SKU under their hashes.

    Refused where the event is impossible or was priced otherwise than here.
    """
    for wrong in _wrongs(event, now):
        raise Refused(wrong)
    tenant = str(event.tenant_id)
    try:
        sheet = pricing.in_force(
            (sheet for sheet in sheets.values() if sheet.tenant_id == tenant),
            (sheet for sheet in sheets.values() if sheet.tenant_id is None),
            event.started_at,
        )
        lines = tuple(pricing.rate(sheet.at(event.started_at), event.counts))
    except pricing.Unrated as error:
        raise Refused(f"unrated: {error}") from error
    if sheets.get(event.sheet) is not sheet:
        raise Refused(f"sheet {event.sheet.hex()[:12]} was not in force at {event.started_at.isoformat()}")
    if pricing.total(lines) != event.quoted_pico:
        raise Refused(f"quoted {event.quoted_pico} pico, the sheet says {pricing.total(lines)}")
    return lines


def _wrongs(event: UsageEvent, now: datetime) -> Iterator[str]:
    """What is impossible about an event by itself; a sentence is made only where it is needed."""
    if event.kind != TOKENS:
        yield f"kind {event.kind} does not come from a gateway"
    if event.provenance not in PROVENANCES:
        yield f"provenance {event.provenance} does not come from a gateway"
    if event.ended_at < event.started_at:
        yield "it ended before it started"
    if not pricing.METERS.keys() >= event.counts.keys():
        yield f"unknown meter in {dict(event.counts)}"
    if not NOT_OF_GATEWAYS.isdisjoint(event.counts):
        yield "accelerator time, reserved days and rebates do not come from a gateway"
    if event.counts and not 0 <= min(event.counts.values()) <= max(event.counts.values()) <= MAX_COUNT:
        yield f"impossible count in {dict(event.counts)}"
    if event.purse is not None and not wire.pays(event.purse, event.sku):
        yield f"purse {event.purse} does not pay for {event.sku}"
    if wrong := out_of_time(event.event_id, now):
        yield wrong


def out_of_time(event_id: UUID, now: datetime) -> str:
    """Why no event of that id can be booked now, by the time in it (whatever that is); "" where one can."""
    ahead = timedelta(milliseconds=id_time_ms(event_id)) - (now - from_ms(0))
    if ahead > AHEAD:
        return f"its id lies {ahead} ahead of us"
    return f"its id is {-ahead} old" if -ahead > OLDEST else ""


@dataclass(slots=True)
class Known:
    """What is on the books already, of the ids, requests and journal numbers that a batch names."""

    events: dict[UUID, tuple[bytes, Place]] = field(default_factory=dict)
    attempts: set[tuple[UUID, int]] = field(default_factory=set)
    places: set[Place] = field(default_factory=set)

    def add(self, event: UsageEvent, payload: bytes, place: Place) -> None:
        """The event is on the books from here on."""
        self.events[event.event_id] = (payload, place)
        self.attempts.add((event.subject_id, event.attempt))
        self.places.add(place)

    def repeats(self, event: UsageEvent, payload: bytes, place: Place) -> bool:
        """True for what is booked already, of that payload hash. Refused for a contradiction to what is booked."""
        booked = self.events.get(event.event_id)
        if booked == (payload, place):
            return True
        if booked is not None:
            same = booked[0] == payload
            raise Refused("booked under another journal number" if same else "same id, different payload")
        if (event.subject_id, event.attempt) in self.attempts:
            raise Refused(f"request {event.subject_id} has an original for attempt {event.attempt}")
        if place in self.places:
            raise Refused(f"journal number {place[2]} carried another event")
        return False


def known(rows: Iterable[tuple[UUID, bytes, UUID, int, str, UUID, int]]) -> Known:
    """From rows (event, payload hash, subject, attempt, gateway, boot, number)."""
    found = Known()
    for event_id, payload, subject_id, attempt, gateway_id, boot_id, seq in rows:
        place = (gateway_id, boot_id, seq)
        found.events[event_id] = (bytes(payload), place)
        found.attempts.add((subject_id, attempt))
        found.places.add(place)
    return found
