"""Usage and billing: every metered line, every entry, the draft invoice."""

from django.http import HttpResponse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from controlplane.console import api_calls, money
from controlplane.console.pages import TenantRequest, page, show
from kernel.clock import month_of, utcnow


@require_safe
@page
def usage(request: TenantRequest) -> HttpResponse:
    """This month's rated lines by day, endpoint and meter; `?endpoint=` shows one."""
    chosen = request.GET.get("endpoint", "")
    start, end = month_of(utcnow())
    path = f"/usage?endpoint_id={chosen}" if chosen else "/usage"
    context = {
        "report": money.usage_report(request.tenant, endpoint_id=chosen, start=start, end=end),
        "currency": request.tenant.currency,
        "period_start": start,
        "period_end": end,
        "chosen": chosen,
        "first_call": api_calls.completion("YOUR_ENDPOINT_ID")[0].text,
        "api_calls": [api_calls.read(request, _("Read the usage events"), path)],
    }
    return show(request, "console/usage.html", context)


@require_safe
@page
def billing(request: TenantRequest) -> HttpResponse:
    """Balance by account, the draft invoice and the newest ledger entries."""
    context = {
        "currency": request.tenant.currency,
        "accounts": money.accounts(request.tenant),
        "invoice": money.draft_invoice(request.tenant),
        "entries": money.entries(request.tenant),
        "api_calls": [
            api_calls.read(request, _("Read the balance"), "/balance"),
            api_calls.read(request, _("Read the ledger entries"), "/ledger/entries"),
            api_calls.read(request, _("Read the invoices"), "/invoices"),
        ],
    }
    return show(request, "console/billing.html", context)
