"""Tenancy of a request: who asks, for which tenant, inside one transaction that sees only its rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from controlplane.across import across_tenants
from controlplane.api.problems import problem_response
from controlplane.console.errors import API_PREFIX, malformed, not_found
from controlplane.console.pages import problem_page
from controlplane.gates import pass_gate
from kernel import keys
from kernel.clock import utcnow
from kernel.problems import INVALID_API_KEY, TENANT_SUSPENDED, UNAUTHENTICATED, Problem
from tenants.models import Membership, Standing, Tenant, TenantKind
from tenants.rls import tenant_scope
from tenants.selectors import KeyCredential, key_credential, membership_list_for

OPERATOR_PREFIX = "/operator/"
SESSION_TENANT = "tenant_id"
# A miss costs the same comparison as a hit.
_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts through the API: `name` goes into the audit log and scopes Idempotency-Key."""

    name: str
    tenant_id: UUID
    scopes: frozenset[str]


class ScopedRequest(HttpRequest):
    """A request as views see it: `tenant` with `membership` (session), or `principal` (API key), or neither.

    `holders` are the role or the scopes that permissions are looked up by.
    """

    tenant: Tenant | None
    membership: Membership | None
    principal: Principal | None
    holders: frozenset[str]


class TenantMiddleware:
    """Finds out who asks and runs the view inside their tenant."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, plain: HttpRequest) -> HttpResponseBase:
        request = cast(ScopedRequest, plain)
        request.tenant = request.membership = request.principal = None
        request.holders = frozenset()
        if _has_nul(request):
            return malformed(request, ValueError("NUL"))
        if request.path.startswith(API_PREFIX):
            return self._api(request)
        if request.user.is_authenticated:
            return self._session(request)
        return self.get_response(request)

    def process_view(
        self, plain: HttpRequest, _view: Callable[..., HttpResponseBase], _args: Any, _kwargs: Any
    ) -> HttpResponse | None:
        """The one place where a role or a scope is asked for; who has none yet is the view's affair."""
        request = cast(ScopedRequest, plain)
        if not (request.principal or request.membership) or request.resolver_match is None or request.method is None:
            return None
        is_operators = request.tenant is not None and request.tenant.kind == TenantKind.OPERATOR
        if request.path.startswith(OPERATOR_PREFIX) and not is_operators:
            return not_found(request, ValueError("another tenant's"))
        try:
            pass_gate(request.resolver_match, request.method, request.holders)
        except Problem as problem:
            return problem_response(problem) if request.principal else problem_page(request, problem)
        return None

    def _api(self, request: ScopedRequest) -> HttpResponseBase:
        try:
            principal = authenticate(request.headers.get("Authorization", ""))
        except Problem as problem:
            return problem_response(problem)
        if principal is None:
            return self.get_response(request)
        with tenant_scope(principal.tenant_id):
            request.principal, request.holders = principal, principal.scopes
            return _kept_if_good(self.get_response(request))

    def _session(self, request: ScopedRequest) -> HttpResponseBase:
        user_id = request.user.pk
        with tenant_scope(None, user_id=user_id):
            membership = _chosen(membership_list_for(user_id), request.session.get(SESSION_TENANT))
        if membership is None:
            return self.get_response(request)
        with tenant_scope(membership.tenant_id, user_id=user_id):
            request.membership, request.holders = membership, frozenset({membership.role})
            request.tenant = membership.tenant
            if request.path.startswith(OPERATOR_PREFIX) and membership.tenant.kind == TenantKind.OPERATOR:
                with across_tenants():
                    return _kept_if_good(self.get_response(request))
            return _kept_if_good(self.get_response(request))


def authenticate(header: str) -> Principal | None:
    """The principal behind `Authorization: Bearer moorage_…`; None without a header.

    Problems: invalid_api_key (malformed, unknown, revoked, expired), tenant_suspended.
    """
    if not header:
        return None
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Problem(UNAUTHENTICATED, "send the key as `Authorization: Bearer moorage_…`")
    parsed = keys.parse(text.strip())
    if parsed is None:
        raise Problem(INVALID_API_KEY, "this is no Moorage API key; copy it whole, it starts with moorage_")
    found = key_credential(parsed.public_id)
    if not keys.matches(settings.KEY_PEPPER, parsed.text, found.secret_hmac if found else _NO_DIGEST):
        raise Problem(INVALID_API_KEY, "the API key is not known; create one in the console under Keys")
    assert found is not None
    return _principal(parsed.public_id, found)


def _principal(public_id: str, found: KeyCredential) -> Principal:
    if found.revoked_at is not None:
        raise Problem(INVALID_API_KEY, f"the API key {public_id} was revoked; create a new one")
    if found.expires_at is not None and found.expires_at <= utcnow():
        raise Problem(INVALID_API_KEY, f"the API key {public_id} has expired; create a new one")
    if found.standing == Standing.SUSPENDED:
        raise Problem(TENANT_SUSPENDED, "the tenant is suspended; settle the balance or ask the operator")
    return Principal(f"key:{public_id}", found.tenant_id, frozenset(found.scopes))


def _has_nul(request: HttpRequest) -> bool:
    """PostgreSQL stores no NUL in text, so no filter can mean one."""
    return any("\0" in text for pair in request.GET.lists() for text in (pair[0], *pair[1]))


def _chosen(memberships: list[Membership], wanted: str | None) -> Membership | None:
    for membership in memberships:
        if str(membership.tenant_id) == wanted:
            return membership
    return memberships[0] if memberships else None


def _kept_if_good(response: HttpResponseBase) -> HttpResponseBase:
    # An exception in a view has become a response by now; its half-done writes must not stay.
    if isinstance(response, HttpResponse) and response.status_code >= 400:
        transaction.set_rollback(True)
    return response
