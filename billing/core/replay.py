"""Replay: what a booked request would count and cost under the code of today, beside what was booked."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from kernel import pricing


@dataclass(frozen=True, slots=True)
class Booked:
    """A request on the books; `counts` without zeros, `cost_pico` the sum of its rated lines."""

    event_id: UUID
    tenant_id: UUID
    started_at: datetime
    counts: Mapping[str, int]
    cost_pico: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Where a replay ends otherwise than the books; `cost_pico` None where nothing prices it any more."""

    booked: Booked
    counts: Mapping[str, int]
    cost_pico: int | None


def replay(booked: Booked, counts: Mapping[str, int], sheets: Mapping[bytes, pricing.Sheet]) -> Delta | None:
    """Price `counts`, which today's parser reads, by the sheet in force at the request's start; None if all agrees."""
    kept = {meter: count for meter, count in counts.items() if count}
    tenant = str(booked.tenant_id)
    try:
        sheet = pricing.in_force(
            (sheet for sheet in sheets.values() if sheet.tenant_id == tenant),
            (sheet for sheet in sheets.values() if sheet.tenant_id is None),
            booked.started_at,
        )
        cost_pico = pricing.total(pricing.rate(sheet.at(booked.started_at), kept))
    except pricing.Unrated:
        return Delta(booked, kept, None)
    same = kept == booked.counts and cost_pico == booked.cost_pico
    return None if same else Delta(booked, kept, cost_pico)
