"""API keys: list, create (the text is shown once), revoke."""

from dataclasses import dataclass
from datetime import datetime

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from controlplane.console import api_calls, words
from controlplane.console.forms import KeyForm
from controlplane.console.pages import TenantRequest, actor, blame, page, show
from controlplane.keys import key_create
from controlplane.keys import key_revoke as revoke
from kernel.clock import utcnow
from kernel.problems import Problem
from tenants.access import access_api_key
from tenants.models import ApiKey
from tenants.selectors import api_key_list_for


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key in words."""

    key: ApiKey
    state: words.Word
    may: list[str | Promise]


@require_http_methods(["GET", "POST"])
@page
def keys(request: TenantRequest) -> HttpResponse:
    """The tenant's keys and the form for a new one; a fresh key's text is in this one response only."""
    form, secret = KeyForm(), ""
    if request.method == "POST":
        form = KeyForm(request.POST)
        if form.is_valid():
            try:
                _key, secret = key_create(
                    tenant_id=request.tenant.id, actor=actor(request), maker=request.holders, **form.arguments()
                )
                form = KeyForm()
            except Problem as problem:
                blame(form, problem)
    now = utcnow()
    context = {
        "form": form,
        "secret": secret,
        "rows": [_row(key, now) for key in api_key_list_for(request.tenant.id)],
        "first_call": api_calls.completion("YOUR_ENDPOINT_ID")[0].text,
        "api_calls": api_calls.keys(request),
    }
    return show(request, "console/keys.html", context, status=422 if form.errors else 200)


@require_POST
@page
def key_revoke(request: TenantRequest, public_id: str) -> HttpResponse:
    """Revoke a key; it holds from the next request at the gateway."""
    key = revoke(key=access_api_key(tenant_id=request.tenant.id, public_id=public_id), actor=actor(request))
    sentence = _("The key “%(name)s” is revoked. The gateway refuses it from the next request.")
    messages.success(request, sentence % {"name": key.name}, extra_tags="ok")
    return redirect("console:keys")


def _row(key: ApiKey, now: datetime) -> KeyRow:
    if key.revoked_at is not None:
        state = words.KEY_REVOKED
    elif key.expires_at is not None and key.expires_at <= now:
        state = words.KEY_EXPIRED
    else:
        state = words.KEY_ACTIVE
    return KeyRow(key, state, [words.label_of(words.SCOPES, scope) for scope in key.scopes])
