"""The operator's pages: tenants and their money, invoices, approvals, pools, and what is not well."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from billing import books
from billing.invoicing import invoice_issue
from billing.models import Operation
from billing.models.operations import WAITING
from billing.operations import operation_approve, operation_ask, operation_refuse
from billing.selectors import balance_for
from billing.settling import credit_note_issue, invoice_void
from controlplane.console import operator as reads
from controlplane.console import words
from controlplane.console.forms import MoneyForm
from controlplane.console.pages import TenantRequest, actor, blame, page, refused, show
from controlplane.listings import listings_unrated
from kernel import ids
from kernel import money as kernel_money
from kernel.problems import INVALID_PARAMETER, NOT_FOUND, Problem
from tenants.models import Tenant
from tenants.services import audit_write, quota_set


@require_safe
@page
def tenants(request: TenantRequest) -> HttpResponse:
    """Every tenant with its balance and standing; `?search=` narrows by name."""
    search = request.GET.get("search", "")
    context = {"rows": reads.tenant_rows(search), "search": search, "most": reads.SHOWN}
    return show(request, "console/operator/tenants.html", context)


@require_safe
@page
def tenant(request: TenantRequest, tenant_id: str) -> HttpResponse:
    """One tenant: money, quotas, invoices, and what waits for a second person."""
    found = reads.tenant_get(tenant_id)
    return _tenant_page(request, found, MoneyForm(initial={"idem_key": str(ids.new_id())}))


@require_POST
@page
def money(request: TenantRequest, tenant_id: str) -> HttpResponse:
    """Top up or grant; above the limit it waits for a second person."""
    found = reads.tenant_get(tenant_id)
    form = MoneyForm(request.POST)
    if not form.is_valid():
        return _tenant_page(request, found, form)
    asked = form.cleaned_data
    try:
        with transaction.atomic():
            waits = operation_ask(
                action=asked["action"],
                arguments={"tenant_id": str(found.id), "amount": asked["amount"], "idem_key": asked["idem_key"]},
                actor=actor(request),
            )
            audit_write(
                actor=actor(request),
                tenant_id=found.id,
                action=f"operator.{asked['action']}",
                detail={"amount": asked["amount"], "reason": asked["reason"], "reference": asked["idem_key"]},
            )
    except Problem as problem:
        blame(form, problem)
        return _tenant_page(request, found, form)
    messages.success(request, _waits() if waits else _("The amount is booked."), extra_tags="ok")
    return redirect("console:operator_tenant", tenant_id)


@require_POST
@page
def quota(request: TenantRequest, tenant_id: str) -> HttpResponse:
    """Another limit of one resource."""
    found = reads.tenant_get(tenant_id)
    typed = request.POST.get("limit", "")
    most = 10**6

    def act() -> None:
        if not (typed.isascii() and typed.isdecimal() and len(typed) <= len(str(most)) and int(typed) <= most):
            raise Problem(INVALID_PARAMETER, f"limit is a whole number from 0 to {most}", param="limit")
        quota_set(tenant_id=found.id, resource=request.POST.get("resource", ""), limit=int(typed), actor=actor(request))

    return _said(request, act, _("The quota is changed."), "console:operator_tenant", tenant_id)


@require_safe
@page
def invoices(request: TenantRequest) -> HttpResponse:
    """Invoices of all tenants by status, and the acts that wait for a second person."""
    status = request.GET.get("status", "")
    chosen = status if status in words.INVOICES else ""
    context = {
        "rows": reads.invoice_rows(status=chosen),
        "statuses": [(name, word.label) for name, word in words.INVOICES.items()],
        "chosen": chosen,
        "operations": reads.operations_waiting(),
        "me": actor(request),
        "most": reads.SHOWN,
    }
    return show(request, "console/operator/invoices.html", context)


@require_POST
@page
def invoice(request: TenantRequest, invoice_id: str) -> HttpResponse:
    """Issue a draft, mark an issued one paid, void it, or issue its credit note."""
    try:
        wanted = ids.decode(ids.INVOICE, invoice_id)
    except ValueError as error:
        raise Problem(NOT_FOUND, f"there is no invoice {invoice_id[:40]!r}") from error
    sent = request.POST
    reason = sent.get("reason", "").replace("\0", "")[:200]
    payment = {"invoice_id": str(wanted), "received": sent.get("received", "").strip() or "0"}
    acts: dict[str, tuple[Callable[..., object], dict[str, Any], str]] = {
        "issue": (invoice_issue, {"invoice_id": wanted}, _("The invoice is issued.")),
        "pay": (operation_ask, {"action": "pay", "arguments": payment}, _("The invoice is marked as paid.")),
        "void": (invoice_void, {"invoice_id": wanted, "reason": reason}, _("The invoice is void.")),
        "credit": (credit_note_issue, {"invoice_id": wanted}, _("The credit note is issued.")),
    }
    if sent.get("act") not in acts:
        raise Problem(INVALID_PARAMETER, f"act is one of {', '.join(acts)}", param="act")
    service, arguments, done = acts[sent["act"]]
    return _said(request, lambda: service(actor=actor(request), **arguments), done, "console:operator_invoices")


@require_POST
@page
def operation(request: TenantRequest, operation_id: UUID) -> HttpResponse:
    """Approve or refuse what somebody else asked for."""
    approve = request.POST.get("act") == "approve"
    decide = operation_approve if approve else operation_refuse
    done = _("The amount is approved and booked.") if approve else _("The request is refused; nothing was booked.")
    return _said(
        request,
        lambda: decide(operation_id=operation_id, actor=actor(request)),
        done,
        "console:operator_invoices",
    )


@require_safe
@page
def pools(request: TenantRequest) -> HttpResponse:
    """Capacity, and who holds it; `?clusters=check` asks every cluster what is in it now."""
    checked = request.GET.get("clusters") == "check"
    clusters = reads.cluster_states() if checked else []
    return show(request, "console/operator/pools.html", {"rows": reads.pool_rows(), "clusters": clusters})


@require_safe
@page
def health(request: TenantRequest) -> HttpResponse:
    """Meters' lag, alarms, quarantine, listings without a price; `?books=check` runs every invariant now."""
    number, rows = reads.quarantine()
    checked = request.GET.get("books") == "check"
    context = {
        "meters": reads.meter_rows(),
        "alarms": reads.alarms(),
        "quarantined": number,
        "quarantine": rows,
        "listings": listings_unrated(),
        "checked": checked,
        "violations": books.check() if checked else [],
        "invariants": len(books.INVARIANTS),
    }
    return show(request, "console/operator/health.html", context)


def _tenant_page(request: TenantRequest, found: Tenant, form: MoneyForm) -> HttpResponse:
    balance = balance_for(found.id)
    context = {
        "tenant": found,
        "tenant_id": ids.encode(ids.TENANT, found.id),
        "standing": words.STANDINGS[found.standing],
        "balance": balance,
        "accounts": [(words.label_of(words.ACCOUNTS, item.kind), item) for item in balance.accounts],
        "form": form,
        "limit": kernel_money.parse(settings.TWO_PERSON_ABOVE),
        "quotas": [(words.label_of(words.RESOURCES, row.resource), row) for row in reads.quota_rows(found)],
        "invoices": reads.invoice_rows(tenant=found),
        "operations": reads.operations_waiting(found),
        "me": actor(request),
    }
    return show(request, "console/operator/tenant.html", context, status=422 if form.errors else 200)


def _waits() -> str:
    return _("The amount waits for a second person's approval.")


def _said(request: TenantRequest, act: Callable[[], object], done: str, route: str, *where: str) -> HttpResponse:
    """Do it and say so on the page that the person came from; so is a Problem."""
    try:
        with transaction.atomic():
            found = act()
    except Problem as problem:
        refused(request, problem)
    else:
        waits = isinstance(found, Operation) and found.status == WAITING
        messages.success(request, _waits() if waits else done, extra_tags="ok")
    return redirect(route, *where)
