"""Price sheets and the one function that prices, for gateway, ingest, console and checks.

A sheet is immutable and named by the SHA-256 of its canonical body. A rate is an exact fraction
num_pico/den per unit; rates with den 1 never round, others are rated cumulatively (docs: ADR money).
A sheet may have clock windows with prices of their own; what a request costs is settled by its start.
A batch has a SKU and a sheet of its own for each time that it may take: `release:shared:batch-24h`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

from kernel.money import div_half_even

IN_HIT, IN_MISS, OUT, REASONING = "in_hit", "in_miss", "out", "reasoning"
ACCEL_SECOND, KTPM_DAY, REBATE, PACKAGE = "accel_second", "ktpm_day", "rebate", "package"
# name -> (unit, cumulative): what a sheet may price and an event may count
METERS: dict[str, tuple[str, bool]] = {
    IN_HIT: ("token", False),
    IN_MISS: ("token", False),
    OUT: ("token", False),
    REASONING: ("token", False),
    ACCEL_SECOND: ("accelerator-second", True),
    KTPM_DAY: ("kTPM-day", False),
    REBATE: ("pico-unit", False),
    PACKAGE: ("pico-unit", False),
}
# Meters whose amounts are worked out and not priced by the unit.
_BOOKED = frozenset({REBATE, PACKAGE})
TOKEN_METERS = frozenset({IN_HIT, IN_MISS, OUT})
# What a sheet must price before its SKU ("release:rung…") goes on sale; tokens that time or kTPM cover rate 0.
RUNG_METERS = {
    "shared": TOKEN_METERS,
    "dedicated": TOKEN_METERS | {ACCEL_SECOND},
    "reserved": TOKEN_METERS | {KTPM_DAY},
}
HOLIDAY = 0  # stands for a listed date in a window's days, whatever weekday it is; 1 is Monday, 7 Sunday
DAY_MIN = 24 * 60


class Unrated(LookupError):
    """No sheet is in force, or the sheet has no rate for a counted meter."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Price of one unit: num_pico / den pico-units of the sheet's currency."""

    num_pico: int
    den: int = 1


@dataclass(frozen=True, slots=True)
class ClockWindow:
    """Minutes [start_min, end_min) of the local days in `days`, with rates that replace the sheet's own there."""

    days: frozenset[int]
    start_min: int
    end_min: int
    meters: Mapping[str, Rate]


@dataclass(frozen=True, slots=True)
class Tier:
    """What a tenant spends on the SKU in a UTC month beyond `above_pico` is rebated by `off_per_mille`."""

    above_pico: int
    off_per_mille: int


@dataclass(frozen=True, slots=True)
class Package:
    """So many tokens of any kind for one price, to be used within `days`: what they cost is rebated."""

    name: str
    tokens: int
    price_pico: int
    days: int


@dataclass(frozen=True, slots=True)
class Sheet:
    """One published sheet. `tenant_id` None is public; `meters` empty ends this owner's prices.

    The first of `windows` that holds an instant prices it; local time is UTC and `utc_offset_min`. `tiers`
    rise. `cut_from` is set on a plain sheet that `at` made: it goes by the name of the published one.
    """

    sku: str
    region: str
    currency: str
    effective_from: datetime
    meters: Mapping[str, Rate]
    tenant_id: str | None = None
    windows: tuple[ClockWindow, ...] = ()
    utc_offset_min: int = 0
    holidays: frozenset[date] = frozenset()
    tiers: tuple[Tier, ...] = ()
    packages: tuple[Package, ...] = ()
    cut_from: bytes | None = None

    def at(self, instant: datetime) -> "Sheet":
        """The sheet without windows that prices what starts at `instant`; itself where it has none."""
        if not self.windows:
            return self
        local = instant.astimezone(UTC) + timedelta(minutes=self.utc_offset_min)
        minute, day = local.hour * 60 + local.minute, self._day(local.date())
        held = (w.meters for w in self.windows if day in w.days and w.start_min <= minute < w.end_min)
        return replace(self, meters={**self.meters, **next(held, {})}, windows=(), cut_from=self.sha256())

    def unrated(self) -> list[str]:
        """Meters that the sheet's SKU counts and nothing here prices: empty before it can go on sale."""
        return sorted(RUNG_METERS[self.sku.split(":")[1]] - self.meters.keys())

    def dearest(self, meter: str) -> Rate | None:
        """The highest rate of a meter at any hour: what money is set aside by. None where it has no rate."""
        found = [m[meter] for m in (self.meters, *(w.meters for w in self.windows)) if meter in m]
        return max(found, key=lambda price: Fraction(price.num_pico, price.den), default=None)

    def borders(self, start: datetime, end: datetime) -> Iterator[datetime]:
        """Instants in [start, end) at which `at` may change, in order."""
        if not self.windows:
            return
        offset = timedelta(minutes=self.utc_offset_min)
        minutes = sorted({0, *(m % DAY_MIN for w in self.windows for m in (w.start_min, w.end_min))})
        midnight = (start.astimezone(UTC) + offset).replace(hour=0, minute=0, second=0, microsecond=0) - offset
        while midnight < end:
            yield from (at for m in minutes if start <= (at := midnight + timedelta(minutes=m)) < end)
            midnight += timedelta(days=1)

    def body(self) -> dict[str, Any]:
        """The canonical form that is hashed and stored; integers as strings."""
        plain = {
            "version": 1,
            "sku": self.sku,
            "region": self.region,
            "currency": self.currency,
            "tenant_id": self.tenant_id,
            "effective_from": self.effective_from.isoformat(),
            "meters": _rates_to_json(self.meters),
        }
        if not self.windows and not self.tiers and not self.packages:
            return plain
        with_packages = {"packages": [[p.name, p.tokens, str(p.price_pico), p.days] for p in self.packages]}
        return (
            plain
            | (with_packages if self.packages else {})
            | {
                "version": 2,
                "utc_offset_min": self.utc_offset_min,
                "holidays": sorted(day.isoformat() for day in self.holidays),
                "windows": [
                    {
                        "days": sorted(window.days),
                        "start_min": window.start_min,
                        "end_min": window.end_min,
                        "meters": _rates_to_json(window.meters),
                    }
                    for window in self.windows
                ],
                "tiers": [[str(tier.above_pico), tier.off_per_mille] for tier in self.tiers],
            }
        )

    def sha256(self) -> bytes:
        """32 bytes that name this sheet in every event."""
        return self.cut_from or hashlib.sha256(canonical(self.body())).digest()

    def wrongs(self) -> Iterator[str]:
        """Sentences about what keeps this sheet from being published."""
        every = [self.meters, *(window.meters for window in self.windows)]
        for meter, price in ((meter, price) for meters in every for meter, price in meters.items()):
            if meter not in METERS or meter in _BOOKED:
                yield f"{meter} is no meter; choose of {', '.join(name for name in METERS if name not in _BOOKED)}"
            elif price.num_pico < 0 or price.den < 1 or (price.den > 1 and not METERS[meter][1]):
                yield f"{meter}: a price is 0 or more, and whole pico-units of one unit unless it is of time"
        for window in self.windows:
            if not 0 <= window.start_min < window.end_min <= DAY_MIN or not window.days <= set(range(8)):
                yield "a window has days of 0 (holiday) to 7 and lies within one local day, start before end"
            if not window.meters.keys() <= self.meters.keys():
                yield "a window prices only what the sheet prices outside it"
        rising = sorted({tier.above_pico for tier in self.tiers}) == [tier.above_pico for tier in self.tiers]
        if not rising or not all(tier.above_pico >= 0 and 0 < tier.off_per_mille <= 1000 for tier in self.tiers):
            yield "tiers rise from 0 or more, each with 1 to 1000 per mille off"
        if not all(p.tokens > 0 and p.price_pico > 0 and p.days > 0 for p in self.packages):
            yield "a package has tokens, a price and days above zero"
        if len({p.name for p in self.packages}) < len(self.packages):
            yield "packages have names of their own"

    def _day(self, day: date) -> int:
        return HOLIDAY if day in self.holidays else day.isoweekday()


class RatedLine(NamedTuple):
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
    if body.get("version") not in {1, 2}:
        raise ValueError(f"price sheet version {body.get('version')!r} is not known")
    return Sheet(
        sku=body["sku"],
        region=body["region"],
        currency=body["currency"],
        tenant_id=body["tenant_id"],
        effective_from=datetime.fromisoformat(body["effective_from"]),
        meters=_rates_from_json(body["meters"]),
        windows=tuple(
            ClockWindow(frozenset(w["days"]), w["start_min"], w["end_min"], _rates_from_json(w["meters"]))
            for w in body.get("windows", ())
        ),
        utc_offset_min=body.get("utc_offset_min", 0),
        holidays=frozenset(date.fromisoformat(day) for day in body.get("holidays", ())),
        tiers=tuple(Tier(int(above), off) for above, off in body.get("tiers", ())),
        packages=tuple(Package(name, count, int(pico), days) for name, count, pico, days in body.get("packages", ())),
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
    """One line per non-zero count, in meter order, by the sheet's own rates (first `at`, where it has windows).

    A cumulative meter is priced as round(after) − round(before), where `seconds_before` is what was
    already rated under this rate: the total is never off by more than half a pico-unit. Reasoning costs
    what output costs unless the sheet says otherwise. Unrated where the sheet lacks another counted meter.
    """
    meters = sheet.meters
    lines = []
    for meter in sorted(counts):
        quantity = counts[meter]
        if quantity == 0:
            continue
        price = meters.get(meter) or (meters.get(OUT) if meter == REASONING else None)
        if price is None:
            raise Unrated(f"{sheet.sku} has no rate for {meter}")
        num, den = price.num_pico, price.den
        if den == 1:
            amount = quantity * num
        else:
            before = seconds_before if METERS[meter][1] else 0
            amount = div_half_even((before + quantity) * num, den) - div_half_even(before * num, den)
        lines.append(RatedLine(meter, quantity, num, den, amount))
    return lines


def total(lines: Iterable[RatedLine]) -> int:
    """Sum of the lines' amounts, pico-units."""
    return sum([line.amount for line in lines])


def worst_case(sheet: Sheet, *, prompt_tokens: int, max_tokens: int, n: int = 1) -> int:
    """The most that a request can cost: every prompt token at its dearest, every answer at full length."""
    meters = sheet.meters
    dearest_in = max((IN_MISS, IN_HIT), key=lambda meter: meters[meter].num_pico if meter in meters else -1)
    dearest_out = max((OUT, REASONING), key=lambda meter: meters[meter].num_pico if meter in meters else -1)
    return total(rate(sheet, {dearest_in: prompt_tokens, dearest_out: n * max_tokens}))


def rebate(tiers: Iterable[Tier], spent_pico: int) -> int:
    """Pico-units that tiers give back of what was spent on one SKU in a month, ≥ 0."""
    back, upper = 0, max(spent_pico, 0)
    for tier in reversed(tuple(tiers)):
        back += max(0, upper - tier.above_pico) * tier.off_per_mille
        upper = min(upper, tier.above_pico)
    return div_half_even(back, 1000)


def _rates_to_json(meters: Mapping[str, Rate]) -> dict[str, Any]:
    return {name: {"num_pico": str(price.num_pico), "den": str(price.den)} for name, price in sorted(meters.items())}


def _rates_from_json(meters: Mapping[str, Any]) -> dict[str, Rate]:
    unknown = set(meters) - set(METERS)
    if unknown:
        raise ValueError(f"unknown meter: {', '.join(sorted(unknown))}")
    return {name: Rate(int(price["num_pico"]), int(price["den"])) for name, price in meters.items()}
