"""Sign-in, sign-out, invitations, the account, and which tenant the session works for."""

from typing import Any

from django.contrib import messages
from django.contrib.auth import login as session_open
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import BaseUserCreationForm
from django.contrib.auth.views import LoginView, LogoutView, PasswordChangeView
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse_lazy
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from controlplane.console import words
from controlplane.console.pages import TenantRequest, memberships, page
from controlplane.console.sentences import told
from controlplane.middleware import SESSION_TENANT
from kernel.problems import NOT_FOUND, Problem
from tenants.members import Invited, invitation_accept, invitation_find
from tenants.rls import tenant_scope
from tenants.sign_in import sign_in_attempt, sign_in_succeeded

MAX_USERNAME_LENGTH = 150


class SignIn(LoginView):
    """Counts every attempt before it looks at the password; a good one gets a fresh session."""

    template_name = "console/login.html"
    redirect_authenticated_user = True

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        username = request.POST.get("username", "")[:MAX_USERNAME_LENGTH]
        try:
            sign_in_attempt(username=username, address=request.META["REMOTE_ADDR"])
        except Problem as problem:
            return self._wait(problem)
        answer = super().post(request, *args, **kwargs)
        if request.user.is_authenticated:
            sign_in_succeeded(user=request.user, address=request.META["REMOTE_ADDR"])
        return answer

    def _wait(self, problem: Problem) -> HttpResponse:
        minutes = problem.extra["minutes"]
        sentence = ngettext(
            "Too many sign-ins failed. Try again in %(minutes)s minute.",
            "Too many sign-ins failed. Try again in %(minutes)s minutes.",
            minutes,
        )
        context = self.get_context_data(
            form=self.get_form_class()(self.request), refusal=sentence % {"minutes": minutes}
        )
        answer = self.render_to_response(context, status=problem.type.status)
        answer["Retry-After"] = str(problem.retry_after_s)
        return answer


class Account(PasswordChangeView):
    """The signed-in person's own password; every other session of theirs ends with a change."""

    template_name = "console/account.html"
    success_url = reverse_lazy("console:account")

    def form_valid(self, form: Any) -> HttpResponse:
        messages.success(self.request, _("Your password is changed. Your other sessions have ended."), extra_tags="ok")
        return super().form_valid(form)


login = SignIn.as_view()
logout = LogoutView.as_view()
account = never_cache(login_required(Account.as_view()))


@never_cache
@require_http_methods(["GET", "POST"])
def invitation(request: HttpRequest, secret: str) -> HttpResponse:
    """Join a tenant by its link: with the session's account, or with a new one made here."""
    invited = invitation_find(secret)
    if invited is None:
        raise Http404("the invitation was used, withdrawn or has expired")
    form: BaseUserCreationForm[Any] = BaseUserCreationForm(request.POST if request.method == "POST" else None)
    refusal = ""
    if request.method == "POST":
        try:
            if request.user.is_authenticated or form.is_valid():
                return _join(request, invited, form)
        except Problem as problem:
            refusal = told(problem.detail)
    context = {"invited": invited, "role": words.ROLES[invited.role], "form": form, "refusal": refusal}
    return render(request, "console/invitation.html", context, status=422 if form.errors or refusal else 200)


def _join(request: HttpRequest, invited: Invited, form: "BaseUserCreationForm[Any]") -> HttpResponse:
    with tenant_scope(invited.tenant_id):
        user = request.user if request.user.is_authenticated else form.save()
        invitation_accept(invited=invited, user=user)
    if not request.user.is_authenticated:
        session_open(request, user)
    request.session[SESSION_TENANT] = str(invited.tenant_id)
    return redirect("console:overview")


@require_POST
@page
def tenant_switch(request: TenantRequest) -> HttpResponse:
    """Choose among one's own tenants; any other id looks absent."""
    wanted = request.POST.get("tenant", "")
    if wanted not in {str(membership.tenant_id) for membership in memberships(request)}:
        raise Problem(NOT_FOUND, "you belong to no such tenant")
    request.session[SESSION_TENANT] = wanted
    return redirect("console:overview")
