"""What every page shares: who may see it, the frame around it, and how a Problem becomes a page or a field."""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.forms import Form
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache

from controlplane.console import words
from controlplane.console.sentences import told
from controlplane.gates import GATES
from kernel.problems import Problem
from tenants.models import Membership, Tenant, TenantKind
from tenants.permissions import Action, may
from tenants.selectors import membership_list_for

View = Callable[..., HttpResponse]


class TenantRequest(HttpRequest):
    """A request of a member, as TenantMiddleware leaves it."""

    tenant: Tenant
    membership: Membership
    holders: frozenset[str]


SECTIONS = {
    "overview": _("Overview"),
    "catalogue": _("Catalogue"),
    "prices": _("Prices"),
    "endpoints": _("Endpoints"),
    "playground": _("Playground"),
    "keys": _("API keys"),
    "usage": _("Usage"),
    "billing": _("Billing"),
    "members": _("Members"),
}
OPERATOR_SECTIONS = {
    "operator_tenants": _("Tenants"),
    "operator_invoices": _("Invoices"),
    "operator_pools": _("Pools"),
    "operator_health": _("Health"),
}


def page(view: View) -> View:
    """A page for signed-in members, inside their tenant; a Problem that leaves the view becomes its page."""

    @never_cache
    @login_required
    @wraps(view)
    def guarded(request: TenantRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.tenant is None:
            return render(request, "console/no_tenant.html", status=403)
        try:
            return view(request, *args, **kwargs)
        except Problem as problem:
            if problem.type.status == 404:
                raise Http404(problem.detail) from problem
            return problem_page(request, problem)

    return guarded


def problem_page(request: HttpRequest, problem: Problem) -> HttpResponse:
    """A Problem as a page; one of a role says who may, in the reader's language."""
    allowed = [words.label_of(words.ROLES, name) for name in problem.extra.get("allowed", ()) if name in words.ROLES]
    member = cast(TenantRequest, request)
    context = {"problem": problem, "allowed": allowed, "role": words.ROLES[member.membership.role]}
    return show(member, "console/problem.html", context, status=problem.type.status)


def show(
    request: TenantRequest, template: str, context: dict[str, Any] | None = None, *, status: int = 200
) -> HttpResponse:
    """Render a page in the frame: navigation with its place marked, and the member's other tenants."""
    operates = request.tenant.kind == TenantKind.OPERATOR
    frame = {
        "navigation": _navigation(request, SECTIONS),
        "operator_navigation": _navigation(request, OPERATOR_SECTIONS) if operates else [],
        "memberships": memberships(request),
        "may": {action.value: may(action, request.holders) for action in Action},
    }
    return render(request, template, frame | (context or {}), status=status)


def attachment(text: str, name: str) -> HttpResponse:
    """A CSV file to keep."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return HttpResponse(text, content_type="text/csv; charset=utf-8", headers=headers)


def _navigation(request: TenantRequest, sections: dict[str, Any]) -> list[dict[str, Any]]:
    """The sections that the member may open, with the place of this page marked."""
    here = (request.resolver_match.url_name if request.resolver_match else "") or ""
    return [
        {
            "url": reverse(f"console:{name}"),
            "icon": name,
            "label": label,
            "current": "page" if here == name else "true" if here.startswith(name.rstrip("s")) else "",
        }
        for name, label in sections.items()
        if may(GATES[f"console:{name}"][0], request.holders)
    ]


def memberships(request: TenantRequest) -> list[Membership]:
    """The member's own tenants, with their roles."""
    assert request.user.pk is not None
    return membership_list_for(request.user.pk)


def actor(request: TenantRequest) -> str:
    """Who acts, as the audit log spells it."""
    return f"user:{request.user.pk}"


def blame(form: Form, problem: Problem) -> None:
    """Put a Problem beside the field that it names, or above the form."""
    named = (problem.param or "").removesuffix("_pico")
    field = named if named in form.fields else None
    form.add_error(field, told(problem.detail))


def refused(request: HttpRequest, problem: Problem) -> None:
    """Say a Problem on the next page that the person sees."""
    messages.error(request, told(problem.detail), extra_tags="bad")
