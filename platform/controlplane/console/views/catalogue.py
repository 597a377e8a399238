"""The catalogue, a release's own page, and everything's price."""

from django.conf import settings
from django.http import HttpResponse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from controlplane.console import api_calls, offers
from controlplane.console.pages import TenantRequest, page, show
from controlplane.console.tariffs import Tariff, tariffs
from controlplane.listings import regions
from inference.core.catalogue import Release
from inference.selectors import release_list
from tenants.models import Tenant


@require_safe
@page
def catalogue(request: TenantRequest) -> HttpResponse:
    """Every release, where it runs, and the reason where it does not."""
    context = {
        "cards": offers.cards(request.tenant),
        "api_calls": [api_calls.read(request, _("List the releases"), "/releases")],
    }
    return show(request, "console/catalogue.html", context)


@require_safe
@page
def release(request: TenantRequest, release_id: str) -> HttpResponse:
    """One release: its facts, its recipes and its prices at every hour."""
    card = offers.card_of(request.tenant, release_id)
    context = {
        "card": card,
        "tariffs": tariffs(request.tenant, card.view.skus.values(), settings.REGION),
        "api_calls": [
            api_calls.read(request, _("List the releases"), "/releases"),
            api_calls.read(request, _("List the prices"), "/prices"),
        ],
    }
    return show(request, "console/release.html", context)


def _on_sale(tenant: Tenant, region: str) -> list[tuple[Release, tuple[Tariff, ...]]]:
    found = ((view.release, tariffs(tenant, view.skus.values(), region)) for view in release_list(region))
    return [(release, prices) for release, prices in found if prices]


@require_safe
@page
def prices(request: TenantRequest) -> HttpResponse:
    """The prices of all releases that are on sale, region by region."""
    places = [(region, _on_sale(request.tenant, region)) for region in regions()]
    context = {
        "places": [(region, rows) for region, rows in places if rows],
        "api_calls": [api_calls.read(request, _("List the prices"), "/prices")],
    }
    return show(request, "console/prices.html", context)
