"""Billing: accounts, entries, invoices with the events behind each line, and files of them."""

from django.http import HttpResponse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from billing.access import access_invoice
from billing.models import Invoice
from billing.selectors import balance_for, invoice_csv, invoice_facts_csv
from controlplane.console import api_calls, money
from controlplane.console.pages import TenantRequest, attachment, page, show
from kernel import ids
from kernel.problems import NOT_FOUND, Problem


@require_safe
@page
def billing(request: TenantRequest) -> HttpResponse:
    """Spend, balance by account, invoices and the newest ledger entries."""
    context = {
        "currency": request.tenant.currency,
        "tenant_id": ids.encode(ids.TENANT, request.tenant.id),
        "balance": balance_for(request.tenant.id),
        "accounts": money.accounts(request.tenant),
        "invoices": money.invoices(request.tenant),
        "entries": money.entries(request.tenant),
        "api_calls": [
            api_calls.read(request, _("Read the balance"), "/balance"),
            api_calls.read(request, _("Read the ledger entries"), "/ledger/entries"),
            api_calls.read(request, _("Read the invoices"), "/invoices"),
        ],
    }
    return show(request, "console/billing.html", context)


@require_safe
@page
def invoice(request: TenantRequest, invoice_id: str) -> HttpResponse:
    """One invoice or credit note, made to be printed."""
    found = _own(request, invoice_id)
    context = {
        "invoice": money.invoice_card(found),
        "api_calls": [
            api_calls.read(request, _("Read the invoice"), f"/invoices/{invoice_id}"),
            api_calls.read(request, _("The lines as CSV"), f"/invoices/{invoice_id}.csv"),
            api_calls.read(request, _("The events behind it as CSV"), f"/invoices/{invoice_id}/facts.csv"),
        ],
    }
    return show(request, "console/invoice.html", context)


@require_safe
@page
def invoice_line(request: TenantRequest, invoice_id: str, line_no: int) -> HttpResponse:
    """The events that a line adds up, the first of them."""
    found = _own(request, invoice_id)
    facts = money.line_facts(found, line_no)
    card = money.invoice_card(found)
    context = {
        "invoice": card,
        "line": next(line for line in card.lines if line.number == line_no),
        "facts": facts[: money.FACTS_SHOWN],
        "number": len(facts),
    }
    return show(request, "console/invoice_line.html", context)


@require_safe
@page
def invoice_file(request: TenantRequest, invoice_id: str) -> HttpResponse:
    """The lines as CSV."""
    found = _own(request, invoice_id)
    return attachment(invoice_csv(found), f"{found.number or invoice_id}.csv")


@require_safe
@page
def invoice_facts_file(request: TenantRequest, invoice_id: str) -> HttpResponse:
    """Every rated event behind the invoice as CSV."""
    found = _own(request, invoice_id)
    return attachment(invoice_facts_csv(found), f"{found.number or invoice_id}-facts.csv")


def _own(request: TenantRequest, invoice_id: str) -> Invoice:
    try:
        wanted = ids.decode(ids.INVOICE, invoice_id)
    except ValueError as error:
        raise Problem(NOT_FOUND, f"there is no invoice {invoice_id[:40]!r}") from error
    return access_invoice(tenant_id=request.tenant.id, invoice_id=wanted)
