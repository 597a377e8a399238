"""Sign-in, sign-out, and which tenant the session works for."""

from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from controlplane.console.pages import TenantRequest, memberships, page
from controlplane.middleware import SESSION_TENANT
from kernel.problems import NOT_FOUND, Problem

login = LoginView.as_view(template_name="console/login.html", redirect_authenticated_user=True)
logout = LogoutView.as_view()


@require_POST
@page
def tenant_switch(request: TenantRequest) -> HttpResponse:
    """Choose among one's own tenants; any other id looks absent."""
    wanted = request.POST.get("tenant", "")
    if wanted not in {str(membership.tenant_id) for membership in memberships(request)}:
        raise Problem(NOT_FOUND, "you belong to no such tenant")
    request.session[SESSION_TENANT] = wanted
    return redirect("console:overview")
