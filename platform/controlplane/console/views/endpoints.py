"""Endpoints: list, deploy, watch, change."""

import hashlib
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.forms import Form
from django.http import HttpResponse
from django.shortcuts import redirect
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from controlplane import keys
from controlplane.console import api_calls, offers, queries
from controlplane.console.forms import CapForm, DeployForm, ReserveForm, ScaleForm, UpdateForm
from controlplane.console.pages import TenantRequest, actor, blame, page, refused, show
from controlplane.console.usage import endpoint_cost
from inference import services
from inference.access import access_endpoint
from inference.core.words import Rung
from inference.models import Endpoint
from inference.selectors import endpoint_get
from kernel import ids, money
from kernel.problems import Problem
from tenants.selectors import endpoint_cap_get


@require_safe
@page
def endpoints(request: TenantRequest) -> HttpResponse:
    """The tenant's endpoints."""
    context = {
        "endpoints": queries.endpoint_rows(request.tenant),
        "api_calls": [
            api_calls.example_endpoint(request),
            api_calls.read(request, _("List the endpoints"), "/endpoints"),
        ],
    }
    return show(request, "console/endpoints.html", context)


@require_http_methods(["GET", "POST"])
@page
def endpoint_new(request: TenantRequest) -> HttpResponse:
    """The deploy form with its price; a POST deploys and leads to the endpoint's page."""
    choices = offers.form_choices()
    if request.method == "GET":
        start = {"release": request.GET.get("release", ""), "region": choices["regions"][0][0]}
        form = DeployForm(initial=start, **choices)
        return show(request, "console/endpoint_new.html", _deploy_context(request, form))
    form = DeployForm(request.POST, **choices)
    if form.is_valid():
        try:
            with transaction.atomic():
                created, _deployment = services.endpoint_create(
                    tenant_id=request.tenant.id, actor=actor(request), **form.arguments()
                )
            return redirect("console:endpoint", ids.encode(ids.ENDPOINT, created.id))
        except Problem as problem:
            blame(form, problem)
    return show(request, "console/endpoint_new.html", _deploy_context(request, form), status=422)


@require_safe
@page
def endpoint_quote(request: TenantRequest) -> HttpResponse:
    """The price beside the deploy form, for what the form holds now."""
    form = DeployForm(request.GET, **offers.form_choices())
    return HttpResponse(render_to_string("console/parts/quote.html", _deploy_context(request, form), request))


@require_safe
@page
def endpoint(request: TenantRequest, endpoint_id: str) -> HttpResponse:
    """One endpoint."""
    row = queries.endpoint_row(request.tenant, endpoint_id)
    context = {
        "row": row,
        "deployment_id": ids.encode(ids.DEPLOYMENT, row.view.deployment_id),
        "scale_form": (
            ReserveForm(initial={"tpm": row.view.tpm})
            if row.is_reserved
            else ScaleForm(initial={"replicas": row.view.replicas})
        ),
        "update_form": UpdateForm(recipes=row.other_recipes),
        "cap_form": CapForm(
            initial={"cap": money.to_string(endpoint_cap_get(tenant_id=request.tenant.id, endpoint_id=row.view.id))}
        ),
        "snippets": api_calls.completion(row.model),
        "api_calls": api_calls.endpoint_changes(request, row.view.id, row.view.replicas + 1),
    }
    return show(request, "console/endpoint.html", context | _live_context(request, row))


@require_safe
@page
def endpoint_live(request: TenantRequest, endpoint_id: str) -> HttpResponse:
    """The part that the page polls: 204 while it is what the browser already has, so nothing is swapped.

    An endpoint that is gone sends the browser to the list.
    """
    try:
        row = queries.endpoint_row(request.tenant, endpoint_id)
    except Problem as problem:
        return HttpResponse(status=problem.type.status, headers={"HX-Redirect": reverse("console:endpoints")})
    context = _live_context(request, row)
    if context["version"] == request.GET.get("seen"):
        return HttpResponse(status=204)
    return HttpResponse(render_to_string("console/parts/endpoint_live.html", context | {"swap": True}, request))


@require_POST
@page
def endpoint_scale(request: TenantRequest, endpoint_id: str) -> HttpResponse:
    """Another number of replicas, or of reserved tokens a minute."""
    own = _own(request, endpoint_id)
    is_reserved = own.rung == Rung.RESERVED
    form = ReserveForm(request.POST) if is_reserved else ScaleForm(request.POST)
    if not form.is_valid():
        return _malformed(request, endpoint_id, form)
    change = services.endpoint_reserve if is_reserved else services.endpoint_scale
    done = _("The reservation is changed.") if is_reserved else _("The number of replicas is changed.")
    return _act(request, endpoint_id, done, change, endpoint=own, **form.cleaned_data)


@require_POST
@page
def endpoint_update(request: TenantRequest, endpoint_id: str) -> HttpResponse:
    """Another recipe."""
    own = _own(request, endpoint_id)
    recipe = request.POST.get("recipe", "")
    done = _("The new recipe is rolling out.")
    return _act(request, endpoint_id, done, services.endpoint_update, endpoint=own, recipe=recipe)


@require_POST
@page
def endpoint_cap(request: TenantRequest, endpoint_id: str) -> HttpResponse:
    """The most to spend at an endpoint in a month, the tenant's own or a shared one."""
    view = endpoint_get(tenant_id=request.tenant.id, endpoint_id=endpoint_id)
    form = CapForm(request.POST)
    if not form.is_valid():
        return _malformed(request, endpoint_id, form)
    return _act(
        request, endpoint_id, _("The cap holds from the next request on."), keys.endpoint_cap,
        tenant_id=request.tenant.id, endpoint_id=view.id, cap_pico=form.cleaned_data["cap"],
    )  # fmt: skip


@require_POST
@page
def endpoint_pause(request: TenantRequest, endpoint_id: str) -> HttpResponse:
    """Stop the replicas and the bill."""
    own = _own(request, endpoint_id)
    return _act(request, endpoint_id, _("The endpoint is paused."), services.endpoint_pause, endpoint=own)


@require_POST
@page
def endpoint_resume(request: TenantRequest, endpoint_id: str) -> HttpResponse:
    """Run again."""
    own = _own(request, endpoint_id)
    return _act(request, endpoint_id, _("The endpoint starts again."), services.endpoint_resume, endpoint=own)


@require_POST
@page
def endpoint_delete(request: TenantRequest, endpoint_id: str) -> HttpResponse:
    """Ask for the end."""
    own = _own(request, endpoint_id)
    return _act(request, endpoint_id, _("The endpoint is being deleted."), services.endpoint_delete, endpoint=own)


def _own(request: TenantRequest, endpoint_id: str) -> Endpoint:
    return access_endpoint(tenant_id=request.tenant.id, endpoint_id=endpoint_id)


def _malformed(request: TenantRequest, endpoint_id: str, form: Form) -> HttpResponse:
    messages.error(request, " ".join(str(error) for errors in form.errors.values() for error in errors), "bad")
    return redirect("console:endpoint", endpoint_id)


def _act(request: TenantRequest, endpoint_id: str, done: str, service: Any, /, **arguments: Any) -> HttpResponse:
    """Call a service; its Problem is shown on the endpoint's page, where the way out is."""
    try:
        service(actor=actor(request), **arguments)
    except Problem as problem:
        refused(request, problem)
    else:
        messages.success(request, done, extra_tags="ok")
    return redirect("console:endpoint", endpoint_id)


def _deploy_context(request: TenantRequest, form: DeployForm) -> dict[str, Any]:
    wanted = form.wanted()
    quote = offers.quote(request.tenant, **wanted) if wanted["release"] else None
    return {"form": form, "quote": quote, "api_calls": [api_calls.endpoint_create(request, form.body())]}


def _live_context(request: TenantRequest, row: queries.EndpointRow) -> dict[str, Any]:
    """The polled part's context; `version` names its content."""
    context: dict[str, Any] = {
        "live": queries.live(row),
        "cost": endpoint_cost(request.tenant, row.view.id),
        "usage_url": f"{reverse('console:usage')}?endpoint={row.view.id}",
    }
    seen = render_to_string("console/parts/endpoint_live.html", context)
    return context | {"version": hashlib.sha256(seen.encode()).hexdigest()[:16]}
