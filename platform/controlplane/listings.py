"""What is offered and cannot be sold: SKUs of live endpoints and of pools with an unrated meter."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Tags, Warning, register  # noqa: A004  Django's own name

from billing.selectors import sku_unrated
from inference.core.words import Rung
from inference.models import Pool
from inference.selectors import endpoint_list_public, release_list
from tenants.models import Tenant


@dataclass(frozen=True, slots=True)
class UnratedListing:
    """A SKU of a release that is listed in a region, and the meters that no sheet prices in a currency."""

    sku: str
    region: str
    currency: str
    meters: list[str]


def regions() -> list[str]:
    """This installation's own region, then every other one that has pools, by name."""
    others = Pool.objects.exclude(cluster="").exclude(region=settings.REGION)
    return [settings.REGION, *others.values_list("region", flat=True).distinct().order_by("region")]


def listings_unrated() -> list[UnratedListing]:
    """Every listing of every region that cannot go on sale, in each currency that a tenant pays in."""
    currencies = sorted(set(Tenant.objects.values_list("currency", flat=True)))
    found = (
        UnratedListing(sku, region, currency, sku_unrated(sku=sku, region=region, currency=currency))
        for region in sorted(regions())
        for sku in sorted(set(_skus(region)))
        for currency in currencies
    )
    return [listing for listing in found if listing.meters]


def skus_on_sale(skus: Iterable[str], tenant: Tenant) -> list[str]:
    """Of these SKUs, what a tenant can buy in this region and its currency, in order of name."""
    where = {"region": settings.REGION, "currency": tenant.currency, "tenant_id": tenant.id}
    return [sku for sku in sorted(skus) if not sku_unrated(sku=sku, **where)]


def _skus(region: str) -> Iterator[str]:
    """Of the shared endpoints that run, and of the other rungs on the pools that there are."""
    yield from (endpoint.sku for endpoint in endpoint_list_public() if endpoint.region == region)
    for view in release_list(region):
        ours = {pool.accelerator for pool in view.pools}
        for (rung, accelerator), sku in view.skus.items():
            if accelerator in ours or (rung == Rung.RESERVED and ours):
                yield sku


# Among the checks for a deployment alone: `migrate` runs the others before the tables are what the models say.
@register(Tags.database, deploy=True)
def listings_are_rated(*, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Warning controlplane.W001 for each listing with an unrated meter: requests for it are answered 503."""
    if not databases:
        return []
    return [
        Warning(
            f"{listing.sku} is not on sale in {listing.region} in {listing.currency}: "
            f"no price for {', '.join(listing.meters)}",
            hint="publish a price sheet for it",
            id="controlplane.W001",
        )
        for listing in listings_unrated()
    ]
