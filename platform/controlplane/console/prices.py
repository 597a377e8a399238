"""Prices for people: a sheet's rates per hour and per million tokens, by the one function that prices."""

from collections.abc import Iterable
from dataclasses import dataclass

from django.utils.functional import Promise
from django.utils.translation import gettext as _

from billing.selectors import sheet_for
from controlplane.console import words
from inference.core.catalogue import TPM_STEP
from inference.core.words import Rung
from kernel.clock import utcnow
from kernel.pricing import ACCEL_SECOND, KTPM_DAY, METERS, Sheet, rate, total
from tenants.models import Tenant

HOUR_S = 3600
DAY_S = 24 * HOUR_S
MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """One price of a listing, in pico-units."""

    label: str | Promise
    amount: int
    currency: str


def sheet_now(tenant: Tenant, sku: str, region: str) -> Sheet | None:
    """What the tenant pays for a SKU at this hour; None where it is not on sale."""
    now = utcnow()
    sheet = sheet_for(sku=sku, region=region, currency=tenant.currency, tenant_id=tenant.id, at=now)
    return sheet and sheet.at(now)


def time_cost(sheet: Sheet | None, accelerator_seconds: int) -> int | None:
    """Price of accelerator time; None where the sheet does not sell time."""
    if sheet is None or ACCEL_SECOND not in sheet.meters:
        return None
    return total(rate(sheet, {ACCEL_SECOND: accelerator_seconds}))


def reserved_day_cost(sheet: Sheet | None, tpm: int) -> int | None:
    """Price of a UTC day of reserved tokens a minute; None where the sheet does not sell them."""
    if sheet is None or KTPM_DAY not in sheet.meters:
        return None
    return total(rate(sheet, {KTPM_DAY: tpm // TPM_STEP}))


def million_tokens_cost(sheet: Sheet) -> int:
    """The highest price of a million tokens of any kind."""
    return max((total(rate(sheet, {meter: MILLION})) for meter in token_meters(sheet)), default=0)


def price_list(tenant: Tenant, skus: Iterable[str], region: str) -> tuple[Price, ...]:
    """Everything that is on sale under these SKUs, free tokens of dedicated ones left out."""
    prices: list[Price] = []
    for sku in sorted(skus):
        sheet = sheet_now(tenant, sku, region)
        if sheet is not None and not sheet.unrated():
            prices.extend(_prices(sheet))
    return tuple(prices)


def _prices(sheet: Sheet) -> list[Price]:
    _release, rung, *accelerator = sheet.sku.split(":")
    hour = time_cost(sheet, HOUR_S)
    if rung == Rung.DEDICATED and hour is not None:
        label = _("Dedicated, an hour of %(accelerator)s") % {"accelerator": accelerator[0]}
        return [Price(label, hour, sheet.currency)]
    day = reserved_day_cost(sheet, TPM_STEP)
    if rung == Rung.RESERVED and day is not None:
        return [Price(_("Reserved, a day of 1,000 tokens a minute"), day, sheet.currency)]
    return [
        Price(
            _("Shared, a million of: %(meter)s") % {"meter": words.METERS[meter]},
            total(rate(sheet, {meter: MILLION})),
            sheet.currency,
        )
        for meter in token_meters(sheet)
    ]


def token_meters(sheet: Sheet) -> list[str]:
    """The kinds of tokens that a sheet prices."""
    return [meter for meter in METERS if METERS[meter][0] == "token" and meter in sheet.meters]
