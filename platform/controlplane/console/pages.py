"""What every page shares: who may see it, the frame around it, and how a Problem becomes a page or a field."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.decorators import login_required
from django.forms import Form
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache

from kernel.problems import Problem
from tenants.models import Membership, Tenant
from tenants.selectors import membership_list_for

View = Callable[..., HttpResponse]


class TenantRequest(HttpRequest):
    """A request of a member, as TenantMiddleware leaves it."""

    tenant: Tenant


SECTIONS = {
    "overview": _("Overview"),
    "catalogue": _("Catalogue"),
    "endpoints": _("Endpoints"),
    "playground": _("Playground"),
    "keys": _("API keys"),
    "usage": _("Usage"),
    "billing": _("Billing"),
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
            return show(request, "console/problem.html", {"problem": problem}, status=problem.type.status)

    return guarded


def show(
    request: TenantRequest, template: str, context: dict[str, Any] | None = None, *, status: int = 200
) -> HttpResponse:
    """Render a page in the frame: navigation with its place marked, and the member's other tenants."""
    here = request.resolver_match.url_name if request.resolver_match else ""
    navigation = [
        {
            "url": reverse(f"console:{name}"),
            "icon": name,
            "label": label,
            "current": "page" if here == name else "true" if (here or "").startswith(name.rstrip("s")) else "",
        }
        for name, label in SECTIONS.items()
    ]
    frame = {"navigation": navigation, "memberships": memberships(request)}
    return render(request, template, frame | (context or {}), status=status)


def memberships(request: TenantRequest) -> list[Membership]:
    """The member's own tenants, with their roles."""
    assert request.user.pk is not None
    return membership_list_for(request.user.pk)


def actor(request: TenantRequest) -> str:
    """Who acts, as the audit log spells it."""
    return f"user:{request.user.pk}"


def blame(form: Form, problem: Problem) -> None:
    """Put a Problem beside the field that it names, or above the form."""
    field = problem.param if problem.param in form.fields else None
    form.add_error(field, problem.detail)
