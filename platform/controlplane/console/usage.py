"""What the usage page shows: billing's rated lines in words, with the names of endpoints and keys."""

from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from django.db.models import Max, Sum
from django.utils.functional import Promise

from billing.models import UsageEvent
from billing.selectors import usage_list_for
from controlplane.console import words
from controlplane.usage import BY, Names, Wanted, events_of, names_of, sums
from kernel import ids
from kernel.clock import month_of, utcnow
from tenants.models import Tenant

LATEST = 50


@dataclass(frozen=True, slots=True)
class UsageRow:
    """A sum of rated lines; `day`, `endpoint` and `key` are empty in totals."""

    meter: str | Promise
    quantity: int
    amount: int
    day: date | None = None
    endpoint: str = ""
    key: str = ""


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
    """A period's usage: sums by day, totals by meter, the newest events, and what to filter by."""

    rows: tuple[UsageRow, ...]
    totals: tuple[UsageRow, ...]
    total: int
    events: tuple[EventRow, ...]
    endpoints: tuple[tuple[str, str], ...]
    keys: tuple[tuple[str, str], ...]


def report(tenant: Tenant, asked: Wanted) -> UsageReport:
    """Usage by day, endpoint, key and meter."""
    names = names_of(tenant)
    events = events_of(tenant, asked, names)
    rows = tuple(
        UsageRow(
            meter=words.label_of(words.METERS, item["lines__meter"]),
            quantity=item["quantity"],
            amount=int(item["amount"]),
            day=item["day"],
            endpoint=names.endpoints.get(item["endpoint_id"], item["endpoint_id"]),
            key=names.keys.get(item["api_key_id"], "") if item["api_key_id"] else "",
        )
        for item in sums(events, *BY)
    )
    totals = sums(events, "lines__meter")
    return UsageReport(
        rows=rows,
        totals=tuple(
            UsageRow(words.label_of(words.METERS, item["lines__meter"]), item["quantity"], int(item["amount"]))
            for item in totals
        ),
        total=sum(row.amount for row in rows),
        events=tuple(_event(names, item) for item in events.prefetch_related("lines")[:LATEST]),
        endpoints=tuple(names.endpoints.items()),
        keys=tuple((names.public_keys[key_id], name) for key_id, name in names.keys.items()),
    )


def endpoint_cost(tenant: Tenant, endpoint_id: str) -> int:
    """What an endpoint's rated lines of this month add up to, pico-units."""
    start, end = month_of(utcnow())
    events = usage_list_for(tenant.id, endpoint_id=endpoint_id, start=start, end=end).prefetch_related(None)
    return int(events.aggregate(total=Sum("lines__amount"))["total"] or 0)


def keys_used_at(tenant: Tenant, since: datetime) -> dict[UUID, datetime]:
    """Key id → when its last metered request since then ended."""
    used = usage_list_for(tenant.id, start=since).prefetch_related(None).filter(api_key_id__isnull=False)
    latest = used.order_by().values("api_key_id").annotate(at=Max("ended_at"))
    return {row["api_key_id"]: row["at"] for row in latest if row["api_key_id"]}


def _event(names: Names, event: UsageEvent) -> EventRow:
    return EventRow(
        id=ids.encode(ids.EVENT, event.event_id),
        endpoint=names.endpoints.get(event.endpoint_id, event.endpoint_id),
        event=event,
        counts=tuple((words.label_of(words.METERS, name), count) for name, count in event.counts.items() if count),
        amount=sum(line.amount for line in event.lines.all()),
    )
