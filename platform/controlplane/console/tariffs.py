"""Price sheets as tables for people: a column for each set of hours, tiers and packages below, list beside contract."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import partial
from itertools import groupby

from django.utils.dates import WEEKDAYS_ABBR
from django.utils.functional import Promise
from django.utils.translation import gettext as _

from billing.selectors import sheet_for
from controlplane.console import words
from controlplane.console.prices import HOUR_S, MILLION, token_meters
from inference.core.words import Rung
from kernel.clock import utcnow
from kernel.pricing import ACCEL_SECOND, HOLIDAY, KTPM_DAY, ClockWindow, Package, Rate, Sheet, rate, total
from tenants.models import Tenant


@dataclass(frozen=True, slots=True)
class Hours:
    """A column: `name` says how it is to the other hours, `spans` when it is; no spans means at all other times."""

    name: str
    spans: tuple[str, ...]
    is_now: bool


@dataclass(frozen=True, slots=True)
class PriceRow:
    """What one meter costs in each column, pico-units."""

    label: str
    unit: str
    amounts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TierRow:
    """Beyond `above` pico-units in a month, `off` comes back."""

    above: int
    off: str


@dataclass(frozen=True, slots=True)
class PackageRow:
    """A token package; `per_million` is what a million of its tokens costs, pico-units."""

    package: Package
    per_million: int


@dataclass(frozen=True, slots=True)
class Tariff:
    """One SKU's prices in force. `list_price` is what others pay, beside a tenant's contract.

    `zone` and `holidays` are empty where the clock changes nothing; `tokens_free` says that time or room is paid alone.
    """

    sku: str
    rung: str | Promise
    accelerator: str
    currency: str
    since: datetime
    hours: tuple[Hours, ...]
    rows: tuple[PriceRow, ...]
    zone: str
    holidays: tuple[date, ...]
    tiers: tuple[TierRow, ...]
    packages: tuple[PackageRow, ...]
    tokens_free: bool
    is_contract: bool = False
    list_price: "Tariff | None" = None


@dataclass(frozen=True, slots=True)
class _Column:
    """A set of prices as a sheet without windows, and the windows in which it holds; none: at all other times."""

    sheet: Sheet
    windows: list[ClockWindow]


def tariffs(tenant: Tenant, skus: Iterable[str], region: str) -> tuple[Tariff, ...]:
    """What is on sale under these SKUs to this tenant, by its own contract where it has one, in the order given."""
    now = utcnow()
    found = []
    for sku in skus:
        sheet_of = partial(sheet_for, sku=sku, region=region, currency=tenant.currency, at=now)
        sheet = sheet_of(tenant_id=tenant.id)
        if sheet is None or sheet.unrated():
            continue
        listed = sheet_of(tenant_id=None) if sheet.tenant_id else None
        list_price = tariff(listed, now) if listed and not listed.unrated() else None
        found.append(replace(tariff(sheet, now), is_contract=sheet.tenant_id is not None, list_price=list_price))
    return tuple(found)


def tariff(sheet: Sheet, now: datetime) -> Tariff:
    """A sheet as a table, the hours that hold at `now` marked."""
    _release, rung, *accelerator = sheet.sku.split(":")
    columns = _columns(sheet)
    return Tariff(
        sku=sheet.sku,
        rung=words.RUNGS[rung],
        accelerator="".join(accelerator),
        currency=sheet.currency,
        since=sheet.effective_from,
        hours=tuple(_hours(sheet, columns, now)),
        rows=tuple(row for row in _rows(columns) if any(row.amounts)),
        zone=_zone(sheet.utc_offset_min) if sheet.windows else "",
        holidays=tuple(sorted(sheet.holidays)) if sheet.windows else (),
        tiers=tuple(TierRow(tier.above_pico, f"{tier.off_per_mille / 10:g} %") for tier in sheet.tiers),
        packages=tuple(PackageRow(item, item.price_pico * MILLION // item.tokens) for item in sheet.packages),
        tokens_free=rung != Rung.SHARED and not any(sheet.meters[name].num_pico for name in token_meters(sheet)),
    )


def _columns(sheet: Sheet) -> list[_Column]:
    """The sheet's own prices, then each other set of prices with all the windows in which it holds."""
    plain = replace(sheet, windows=())
    others: dict[frozenset[tuple[str, Rate]], list[ClockWindow]] = {}
    for window in sheet.windows:
        others.setdefault(frozenset(window.meters.items()), []).append(window)
    return [
        _Column(plain, []),
        *(_Column(replace(plain, meters={**sheet.meters, **dict(prices)}), held) for prices, held in others.items()),
    ]


def _rows(columns: list[_Column]) -> Iterator[PriceRow]:
    meters = columns[0].sheet.meters
    tokens = token_meters(columns[0].sheet)
    wanted = [(meter, str(words.METERS[meter]), _("1 million tokens"), MILLION) for meter in tokens]
    if KTPM_DAY in meters:
        wanted.append((KTPM_DAY, _("Reserved room"), _("1,000 tokens a minute, for a UTC day"), 1))
    if ACCEL_SECOND in meters:
        wanted.append((ACCEL_SECOND, _("Accelerator time"), _("an hour"), HOUR_S))
        wanted.append((ACCEL_SECOND, _("Accelerator time"), _("a second"), 1))
    for meter, label, unit, quantity in wanted:
        yield PriceRow(label, unit, tuple(total(rate(column.sheet, {meter: quantity})) for column in columns))


def _hours(sheet: Sheet, columns: list[_Column], now: datetime) -> Iterator[Hours]:
    base, *others = columns
    dearer = [_is_dearer(column.sheet, base.sheet) for column in others]
    names = [_("Peak") if is_dearer else _("Off-peak") for is_dearer in dearer]
    usual = _("Price") if not others else _("Off-peak") if all(dearer) else _("Standard")
    held = sheet.at(now).meters
    for name, column in zip([usual, *names], columns, strict=True):
        yield Hours(name, tuple(_spans(column.windows)), is_now=bool(others) and held == column.sheet.meters)


def _is_dearer(sheet: Sheet, base: Sheet) -> bool:
    return any(
        price.num_pico * base.meters[meter].den > base.meters[meter].num_pico * price.den
        for meter, price in sheet.meters.items()
    )


def _spans(windows: list[ClockWindow]) -> Iterator[str]:
    """The windows as `Mon–Fri 09:00–12:00, 14:00–18:00`, a text for each set of days."""
    ordered = sorted(windows, key=lambda window: (sorted(window.days), window.start_min))
    for days, same in groupby(ordered, key=lambda window: window.days):
        yield f"{_days(days)} {', '.join(f'{_clock(item.start_min)}–{_clock(item.end_min)}' for item in same)}"


def _days(days: frozenset[int]) -> str:
    """Weekdays, runs of three or more as `Mon–Fri`, and holidays last."""
    names: list[str] = []
    for _gap, run in groupby(enumerate(sorted(days - {HOLIDAY})), key=lambda pair: pair[1] - pair[0]):
        found = [str(WEEKDAYS_ABBR[day - 1]) for _at, day in run]
        names += [f"{found[0]}–{found[-1]}"] if len(found) > 2 else found
    return ", ".join(names + ([_("holidays")] if HOLIDAY in days else []))


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _zone(offset_min: int) -> str:
    sign = "-" if offset_min < 0 else "+"
    return f"UTC{sign}{_clock(abs(offset_min))}" if offset_min else "UTC"
