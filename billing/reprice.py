"""Reprice: booked requests replayed through the parser and the price code of today. It reports and writes nothing."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from django.db.models import Sum

from billing.core.replay import Booked, Delta, replay
from billing.models import UsageEvent
from billing.selectors import sheets_of
from kernel.usage import ENGINE_FINAL, TOKENS

CHUNK = 2000


def events_reprice(
    *, since: datetime, counts_of: Callable[[Mapping[str, Any]], Mapping[str, int]]
) -> Iterator[Delta | None]:
    """For each request that ended since then: None where a replay agrees with the books, else the difference.

    `counts_of` reads an engine's own usage object, which is kept with each event; where the engine's last word
    is not what was billed (a client that left, a stream that broke) the booked counts are priced again as
    they are. Dedicated time has no usage object: its invariants are I8b and I25.
    """
    sheets = cache(sheets_of)
    events = (
        UsageEvent.objects.filter(kind=TOKENS, corrects=None, ended_at__gte=since)
        .select_related("sheet")
        .annotate(cost=Sum("lines__amount", default=0))
        .order_by("event_id")
    )
    for event in events.iterator(CHUNK):
        booked = Booked(
            event_id=event.event_id,
            tenant_id=event.tenant_id,
            started_at=event.started_at,
            counts={meter: count for meter, count in event.counts.items() if count},
            cost_pico=int(event.cost),
        )
        said = event.engine_usage if event.provenance == ENGINE_FINAL else None
        counts = event.counts if said is None else counts_of(said)
        yield replay(booked, counts, sheets(event.sku, event.region, event.sheet.currency))
