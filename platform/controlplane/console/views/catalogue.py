"""The catalogue page."""

from django.http import HttpResponse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from controlplane.console import api_calls, offers
from controlplane.console.pages import TenantRequest, page, show


@require_safe
@page
def catalogue(request: TenantRequest) -> HttpResponse:
    """Every release, where it runs, and the reason where it does not."""
    context = {
        "cards": offers.cards(request.tenant),
        "api_calls": [api_calls.read(request, _("List the releases"), "/releases")],
    }
    return show(request, "console/catalogue.html", context)
