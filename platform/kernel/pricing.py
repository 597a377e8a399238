"""Price sheets and the one function that prices, for gateway, ingest, console and checks.

A sheet is immutable and named by the SHA-256 of its canonical body. A rate is an exact fraction
num_pico/den per unit; rates with den 1 never round, others are rated cumulatively (docs: ADR money).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kernel.money import div_half_even

IN_HIT, IN_MISS, OUT, ACCEL_SECOND = "in_hit", "in_miss", "out", "accel_second"
# name -> (unit, cumulative): what a sheet may price and an event may count
METERS: dict[str, tuple[str, bool]] = {
    IN_HIT: ("token", False),
    IN_MISS: ("token", False),
    OUT: ("token", False),
    ACCEL_SECOND: ("accelerator-second", True),
}


class Unrated(LookupError):
    """No sheet is in force, or the sheet has no rate for a counted meter."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Price of one unit: num_pico / den pico-units of the sheet's currency."""

    num_pico: int
    den: int = 1


@dataclass(frozen=True, slots=True)
class Sheet:
    """One published sheet. `tenant_id` None is public; `meters` empty ends this owner's prices."""

    sku: str
    region: str
    currency: str
    effective_from: datetime
    meters: Mapping[str, Rate]
    tenant_id: str | None = None

    def body(self) -> dict[str, Any]:
        """The canonical form that is hashed and stored; integers as strings."""
        return {
            "version": 1,
            "sku": self.sku,
            "region": self.region,
            "currency": self.currency,
            "tenant_id": self.tenant_id,
            "effective_from": self.effective_from.isoformat(),
            "meters": {
                name: {"num_pico": str(rate.num_pico), "den": str(rate.den)}
                for name, rate in sorted(self.meters.items())
            },
        }

    def sha256(self) -> bytes:
        """32 bytes that name this sheet in every event."""
        return hashlib.sha256(canonical(self.body())).digest()


@dataclass(frozen=True, slots=True)
class RatedLine:
    """quantity × num_pico / den = amount (pico-units)."""

    meter: str
    quantity: int
    num_pico: int
    den: int
    amount: int


def canonical(value: Any) -> bytes:
    """The one JSON encoding that is hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sheet_from_body(body: Mapping[str, Any]) -> Sheet:
    """The sheet that `Sheet.body` wrote. ValueError for another version or an unknown meter."""
    if body.get("version") != 1:
        raise ValueError(f"price sheet version {body.get('version')!r} is not known")
    unknown = set(body["meters"]) - set(METERS)
    if unknown:
        raise ValueError(f"unknown meter: {', '.join(sorted(unknown))}")
    return Sheet(
        sku=body["sku"],
        region=body["region"],
        currency=body["currency"],
        tenant_id=body["tenant_id"],
        effective_from=datetime.fromisoformat(body["effective_from"]),
        meters={name: Rate(int(rate["num_pico"]), int(rate["den"])) for name, rate in body["meters"].items()},
    )


def in_force(own: Iterable[Sheet], public: Iterable[Sheet], at: datetime) -> Sheet:
    """The sheet at `at`: the tenant's latest before the public latest. Unrated where there is none."""
    for owner in (own, public):
        started = [sheet for sheet in owner if sheet.effective_from <= at]
        if started:
            latest = max(started, key=lambda sheet: sheet.effective_from)
            if latest.meters:
                return latest
    raise Unrated("no price is in force")


def rate(sheet: Sheet, counts: Mapping[str, int], *, seconds_before: int = 0) -> list[RatedLine]:
    """One line per non-zero count, in meter order.

    A cumulative meter is priced as round(after) − round(before), where `seconds_before` is what was
    already rated under this rate: the total is never off by more than half a pico-unit. Unrated
    where the sheet lacks a counted meter.
    """
    lines = []
    for meter, quantity in sorted(counts.items()):
        if quantity == 0:
            continue
        if meter not in sheet.meters:
            raise Unrated(f"{sheet.sku} has no rate for {meter}")
        r = sheet.meters[meter]
        before = seconds_before if METERS[meter][1] else 0
        amount = div_half_even((before + quantity) * r.num_pico, r.den) - div_half_even(before * r.num_pico, r.den)
        lines.append(RatedLine(meter, quantity, r.num_pico, r.den, amount))
    return lines


def total(lines: Iterable[RatedLine]) -> int:
    """Sum of the lines' amounts, pico-units."""
    return sum(line.amount for line in lines)


def worst_case(sheet: Sheet, *, prompt_tokens: int, max_tokens: int, n: int = 1) -> int:
    """The most that a request can cost: every prompt token missed, every answer at full length."""
    highest_in = IN_MISS
    if sheet.meters.get(IN_HIT, Rate(0)).num_pico > sheet.meters.get(IN_MISS, Rate(0)).num_pico:
        highest_in = IN_HIT
    return total(rate(sheet, {highest_in: prompt_tokens, OUT: n * max_tokens}))
