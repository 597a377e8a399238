"""What the usage page shows: billing's rated lines in words, with the names of endpoints and keys."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from django.db.models import Max, QuerySet, Sum
from django.db.models.functions import TruncDate
from django.utils.functional import Promise

from billing.models import UsageEvent
from billing.selectors import usage_list_for
from controlplane.console import words
from inference.selectors import endpoint_list_for, endpoint_list_public
from kernel import ids
from kernel.clock import month_of, utcnow
from kernel.money import to_string
from tenants.models import Tenant
from tenants.selectors import api_key_list_for

LATEST = 50
MONTHS = 13
COLUMNS = ("day", "endpoint_id", "api_key", "meter", "quantity", "amount", "currency")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: [start, end), and one endpoint or one key (its public id) where not empty."""

    start: datetime
    end: datetime
    endpoint_id: str = ""
    key: str = ""


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


@dataclass(frozen=True, slots=True)
class Names:
    """Endpoint id → name and key id → name, of what the tenant has; what is gone is known by its id."""

    endpoints: Mapping[str, str]
    keys: Mapping[UUID, str]
    public_keys: Mapping[UUID, str]


def months() -> list[str]:
    """This UTC month and those before it, as `YYYY-MM`."""
    start, _end = month_of(utcnow())
    first = start.year * 12 + start.month - 1
    return [f"{number // 12}-{number % 12 + 1:02d}" for number in range(first, first - MONTHS, -1)]


def wanted(month: str, *, endpoint_id: str = "", key: str = "") -> Wanted:
    """One of `months()`, narrowed."""
    start, end = month_of(datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC))
    return Wanted(start, end, endpoint_id, key)


def report(tenant: Tenant, asked: Wanted) -> UsageReport:
    """Usage by day, endpoint, key and meter."""
    names = _names(tenant)
    events = _events(tenant, asked, names)
    rows = tuple(
        UsageRow(
            meter=words.label_of(words.METERS, item["lines__meter"]),
            quantity=item["quantity"],
            amount=int(item["amount"]),
            day=item["day"],
            endpoint=names.endpoints.get(item["endpoint_id"], item["endpoint_id"]),
            key=names.keys.get(item["api_key_id"], "") if item["api_key_id"] else "",
        )
        for item in _sums(events, "day", "endpoint_id", "api_key_id", "lines__meter")
    )
    totals = _sums(events, "lines__meter")
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


def as_csv(tenant: Tenant, asked: Wanted) -> str:
    """The same sums as RFC 4180 text; amounts are exact."""
    names = _names(tenant)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for item in _sums(_events(tenant, asked, names), "day", "endpoint_id", "api_key_id", "lines__meter"):
        writer.writerow(
            (
                item["day"].isoformat(),
                item["endpoint_id"],
                names.public_keys.get(item["api_key_id"], ""),
                item["lines__meter"],
                item["quantity"],
                to_string(int(item["amount"])),
                tenant.currency,
            )
        )
    return out.getvalue()


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


def _events(tenant: Tenant, asked: Wanted, names: Names) -> QuerySet[UsageEvent]:
    events = usage_list_for(tenant.id, endpoint_id=asked.endpoint_id, start=asked.start, end=asked.end)
    if asked.key:
        known = [key_id for key_id, public_id in names.public_keys.items() if public_id == asked.key]
        events = events.filter(api_key_id__in=known)
    return events.prefetch_related(None)


def _sums(events: QuerySet[UsageEvent], *by: str) -> list[dict[str, Any]]:
    """Quantity and amount of rated lines, grouped; newest day first."""
    sums = (
        events.filter(lines__isnull=False)
        .annotate(day=TruncDate("ended_at"))
        .order_by(*(f"-{name}" if name == "day" else name for name in by))
        .values(*by)
        .annotate(quantity=Sum("lines__quantity"), amount=Sum("lines__amount"))
    )
    return list(sums)


def _event(names: Names, event: UsageEvent) -> EventRow:
    return EventRow(
        id=ids.encode(ids.EVENT, event.event_id),
        endpoint=names.endpoints.get(event.endpoint_id, event.endpoint_id),
        event=event,
        counts=tuple((words.label_of(words.METERS, name), count) for name, count in event.counts.items() if count),
        amount=sum(line.amount for line in event.lines.all()),
    )


def _names(tenant: Tenant) -> Names:
    keys = list(api_key_list_for(tenant.id))
    return Names(
        endpoints={view.id: view.name for view in (*endpoint_list_for(tenant.id), *endpoint_list_public())},
        keys={key.id: key.name for key in keys},
        public_keys={key.id: key.public_id for key in keys},
    )
