"""Members: who they are, what they may, invitations that wait, and what the audit log says of this tenant."""

from collections.abc import Callable
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from controlplane.console import words
from controlplane.console.forms import InvitationForm
from controlplane.console.pages import TenantRequest, actor, blame, page, refused, show
from kernel.problems import NOT_FOUND, Problem
from tenants import members as services
from tenants.selectors import audit_list_for, invitation_list_for, member_list_for


@require_http_methods(["GET", "POST"])
@page
def members(request: TenantRequest) -> HttpResponse:
    """The tenant's people; a POST invites one, and the link is in this one response only."""
    form, link = InvitationForm(), ""
    if request.method == "POST":
        form = InvitationForm(request.POST)
        if form.is_valid():
            try:
                _row, secret = services.invitation_create(
                    tenant_id=request.tenant.id, actor=actor(request), **form.cleaned_data
                )
                link = request.build_absolute_uri(reverse("console:invitation", args=[secret]))
                form = InvitationForm()
            except Problem as problem:
                blame(form, problem)
    people = member_list_for(request.tenant.id)
    names = {f"user:{member.user_id}": member.user.get_username() for member in people}
    context = {
        "form": form,
        "link": link,
        "members": [(member, words.ROLES[member.role]) for member in people],
        "invitations": [(row, words.ROLES[row.role]) for row in invitation_list_for(request.tenant.id)],
        "roles": [(name, label, words.ROLE_HINTS[name]) for name, label in words.ROLES.items()],
        "audit": [(row, names.get(row.actor, row.actor)) for row in audit_list_for(request.tenant.id)],
    }
    return show(request, "console/members.html", context, status=422 if form.errors else 200)


@require_POST
@page
def member_role(request: TenantRequest, member_id: int) -> HttpResponse:
    """Another role, from the member's next request on."""
    return _act(
        request, _("The role is changed; it holds from the member's next request."),
        services.member_role_set, member_id=member_id, role=request.POST.get("role", ""),
    )  # fmt: skip


@require_POST
@page
def member_remove(request: TenantRequest, member_id: int) -> HttpResponse:
    """The person leaves the tenant."""
    return _act(request, _("The member is removed."), services.member_remove, member_id=member_id)


@require_POST
@page
def invitation_withdraw(request: TenantRequest, invitation_id: UUID) -> HttpResponse:
    """The link becomes worthless."""
    return _act(request, _("The invitation is withdrawn."), services.invitation_withdraw, invitation_id=invitation_id)


def _act(request: TenantRequest, done: str, service: Callable[..., object], **arguments: object) -> HttpResponse:
    try:
        service(tenant_id=request.tenant.id, actor=actor(request), **arguments)
    except Problem as problem:
        if problem.type is NOT_FOUND:
            raise
        refused(request, problem)
    else:
        messages.success(request, done, extra_tags="ok")
    return redirect("console:members")
