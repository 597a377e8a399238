"""A tenant's usage as sums by day, endpoint, key and meter: for the console's page, and as a file of both doors."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db.models import QuerySet, Sum
from django.db.models.functions import TruncDate

from billing.models import UsageEvent
from billing.selectors import usage_list_for
from inference.selectors import endpoint_list_for, endpoint_list_public
from kernel.clock import month_of, utcnow
from kernel.money import to_string
from tenants.models import Tenant
from tenants.selectors import api_key_list_for

MONTHS = 13
COLUMNS = ("day", "endpoint_id", "api_key", "meter", "quantity", "amount", "currency")
BY = ("day", "endpoint_id", "api_key_id", "lines__meter")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: [start, end), and one endpoint or one key (its public id) where not empty."""

    start: datetime
    end: datetime
    endpoint_id: str = ""
    key: str = ""


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


def as_csv(tenant: Tenant, asked: Wanted) -> str:
    """The same sums as RFC 4180 text; amounts are exact."""
    names = names_of(tenant)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for item in sums(events_of(tenant, asked, names), *BY):
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


def events_of(tenant: Tenant, asked: Wanted, names: Names) -> QuerySet[UsageEvent]:
    """The events that are asked for, newest first, without their lines."""
    events = usage_list_for(tenant.id, endpoint_id=asked.endpoint_id, start=asked.start, end=asked.end)
    if asked.key:
        known = [key_id for key_id, public_id in names.public_keys.items() if public_id == asked.key]
        events = events.filter(api_key_id__in=known)
    return events.prefetch_related(None)


def sums(events: QuerySet[UsageEvent], *by: str) -> list[dict[str, Any]]:
    """Quantity and amount of rated lines, grouped; newest day first."""
    grouped = (
        events.filter(lines__isnull=False)
        .annotate(day=TruncDate("started_at"))
        .order_by(*(f"-{name}" if name == "day" else name for name in by))
        .values(*by)
        .annotate(quantity=Sum("lines__quantity"), amount=Sum("lines__amount"))
    )
    return list(grouped)


def names_of(tenant: Tenant) -> Names:
    """What the tenant's endpoints and keys are called."""
    keys = list(api_key_list_for(tenant.id))
    return Names(
        endpoints={view.id: view.name for view in (*endpoint_list_for(tenant.id), *endpoint_list_public())},
        keys={key.id: key.name for key in keys},
        public_keys={key.id: key.public_id for key in keys},
    )
