"""Usage: every metered line by day, endpoint, key and meter, on a page and as a file."""

from datetime import date

from django.http import HttpResponse
from django.utils import dateformat
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from django.views.decorators.http import require_safe

from controlplane import usage as sums
from controlplane.console import api_calls
from controlplane.console import usage as reads
from controlplane.console.pages import TenantRequest, attachment, page, show


@require_safe
@page
def usage(request: TenantRequest) -> HttpResponse:
    """A month's rated lines; `?month=`, `?endpoint=` and `?key=` narrow them."""
    wanted = _wanted(request)
    path = f"/usage?endpoint_id={wanted.endpoint_id}" if wanted.endpoint_id else "/usage"
    context = {
        "report": reads.report(request.tenant, wanted),
        "currency": request.tenant.currency,
        "wanted": wanted,
        "months": [(name, _month(name)) for name in sums.months()],
        "month": f"{wanted.start:%Y-%m}",
        "first_call": api_calls.completion("YOUR_ENDPOINT_ID")[0].text,
        "api_calls": [api_calls.read(request, _("Read the usage events"), path)],
    }
    return show(request, "console/usage.html", context)


@require_safe
@page
def usage_file(request: TenantRequest) -> HttpResponse:
    """The same sums as CSV."""
    wanted = _wanted(request)
    return attachment(sums.as_csv(request.tenant, wanted), f"usage-{wanted.start:%Y-%m}.csv")


def _month(name: str) -> str:
    return dateformat.format(date.fromisoformat(f"{name}-01"), pgettext("a month", "F Y"))


def _wanted(request: TenantRequest) -> sums.Wanted:
    known = sums.months()
    asked = request.GET.get("month", "")
    month = asked if asked in known else known[0]
    return sums.wanted(month, endpoint_id=request.GET.get("endpoint", ""), key=request.GET.get("key", ""))
