"""The catalogue, a release's own page, and everything's price."""

from django.conf import settings
from django.http import HttpResponse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from controlplane.console import api_calls, offers
from controlplane.console.pages import TenantRequest, page, show
from controlplane.console.tariffs import tariffs


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


@require_safe
@page
def prices(request: TenantRequest) -> HttpResponse:
    """The prices of all releases that are on sale here."""
    found = [
        (card, tariffs(request.tenant, card.view.skus.values(), settings.REGION))
        for card in offers.cards(request.tenant)
    ]
    context = {
        "rows": [(card, prices) for card, prices in found if prices],
        "region": settings.REGION,
        "api_calls": [api_calls.read(request, _("List the prices"), "/prices")],
    }
    return show(request, "console/prices.html", context)
