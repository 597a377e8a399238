"""API keys: list, create and rotate (the text is shown once), limit, revoke."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from controlplane import keys as services
from controlplane.console import api_calls, words
from controlplane.console.forms import KeyForm, LimitsForm
from controlplane.console.pages import TenantRequest, actor, blame, page, show
from controlplane.console.usage import keys_used_at
from kernel import money
from kernel.clock import utcnow
from kernel.problems import Problem
from tenants.access import access_api_key
from tenants.models import ApiKey
from tenants.selectors import api_key_list_for
from tenants.services import KEY_LIMITS

USED_WITHIN = timedelta(days=31)


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key in words; `used_at` None: not within USED_WITHIN."""

    key: ApiKey
    state: words.Word
    may: list[str | Promise]
    used_at: datetime | None

    @property
    def works(self) -> bool:
        """It is accepted now."""
        return self.state is words.KEY_ACTIVE


@require_http_methods(["GET", "POST"])
@page
def keys(request: TenantRequest) -> HttpResponse:
    """The tenant's keys and the form for a new one; a fresh key's text is in this one response only."""
    form, secret = KeyForm(), ""
    if request.method == "POST":
        form = KeyForm(request.POST)
        if form.is_valid():
            try:
                secret = _create(request, form)
                form = KeyForm()
            except Problem as problem:
                blame(form, problem)
    context = {
        "form": form,
        "secret": secret,
        "rows": _rows(request),
        "first_call": api_calls.completion("YOUR_ENDPOINT_ID")[0].text,
        "api_calls": api_calls.keys(request),
    }
    return show(request, "console/keys.html", context, status=422 if form.errors else 200)


@require_http_methods(["GET", "POST"])
@page
def key(request: TenantRequest, public_id: str) -> HttpResponse:
    """One key with its limits; a POST changes them from the next request on."""
    found = access_api_key(tenant_id=request.tenant.id, public_id=public_id)
    form = LimitsForm(initial=_held(found))
    if request.method == "POST":
        form = LimitsForm(request.POST)
        if form.is_valid():
            try:
                services.key_limit(key=found, limits=form.limits(), actor=actor(request))
                messages.success(request, _("The limits hold from the next request on."), extra_tags="ok")
                return redirect("console:key", public_id)
            except Problem as problem:
                blame(form, problem)
    return _key_page(request, found, form, status=422 if form.errors else 200)


@require_POST
@page
def key_rotate(request: TenantRequest, public_id: str) -> HttpResponse:
    """A successor beside the key, which goes on for a day; its text is in this one response only."""
    found = access_api_key(tenant_id=request.tenant.id, public_id=public_id)
    successor, secret = services.key_rotate(key=found, actor=actor(request), maker=request.holders)
    return _key_page(request, successor, LimitsForm(initial=_held(successor)), secret=secret)


@require_POST
@page
def key_revoke(request: TenantRequest, public_id: str) -> HttpResponse:
    """Revoke a key; it holds from the next request at the gateway."""
    found = access_api_key(tenant_id=request.tenant.id, public_id=public_id)
    revoked = services.key_revoke(key=found, actor=actor(request))
    sentence = _("The key “%(name)s” is revoked. The gateway refuses it from the next request.")
    messages.success(request, sentence % {"name": revoked.name}, extra_tags="ok")
    return redirect("console:keys")


def _create(request: TenantRequest, form: KeyForm) -> str:
    """The new key's text; a limit that is refused leaves no key behind."""
    with transaction.atomic():
        created, text = services.key_create(
            tenant_id=request.tenant.id, actor=actor(request), maker=request.holders, **form.arguments()
        )
        asked = {name: value for name, value in form.limits().items() if value != getattr(created, name)}
        if asked:
            services.key_limit(key=created, limits=asked, actor=actor(request))
    return text


def _key_page(
    request: TenantRequest, found: ApiKey, form: LimitsForm, *, secret: str = "", status: int = 200
) -> HttpResponse:
    row = next(row for row in _rows(request) if row.key.id == found.id)
    context = {
        "row": row,
        "form": form,
        "secret": secret,
        "currency": request.tenant.currency,
        "api_calls": api_calls.key(request, found.public_id),
    }
    return show(request, "console/key.html", context, status=status)


def _held(found: ApiKey) -> dict[str, Any]:
    held = {name: getattr(found, name) for name in KEY_LIMITS}
    return held | {name: money.to_string(held[f"{name}_pico"]) for name in ("spend_cap", "user_cap")}


def _rows(request: TenantRequest) -> list[KeyRow]:
    now = utcnow()
    used = keys_used_at(request.tenant, now - USED_WITHIN)
    return [
        KeyRow(
            key=item,
            state=_state(item, now),
            may=[words.label_of(words.SCOPES, scope) for scope in item.scopes],
            used_at=used.get(item.id),
        )
        for item in api_key_list_for(request.tenant.id)
    ]


def _state(item: ApiKey, now: datetime) -> words.Word:
    if item.revoked_at is not None:
        return words.KEY_REVOKED
    if item.expires_at is not None and item.expires_at <= now:
        return words.KEY_EXPIRED
    return words.KEY_ACTIVE
