"""DRF's view of the principal that TenantMiddleware found. Cookies mean nothing on API routes."""

from typing import TYPE_CHECKING, cast

from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from controlplane.middleware import Principal, ScopedRequest
from kernel.problems import FORBIDDEN, Problem
from tenants.models import Scope

if TYPE_CHECKING:  # rest_framework.views imports this module by name
    from rest_framework.views import APIView


def principal(request: Request) -> Principal:
    """Who asks; every view behind ManageScope has one."""
    assert isinstance(request.user, Principal)
    return request.user


class ApiKeyAuthentication(BaseAuthentication):
    """request.user is the Principal."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        found = cast(ScopedRequest, request._request).principal
        return (found, None) if found else None

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="moorage"'


class ManageScope(BasePermission):
    """The provisioning API wants a key with the scope `manage`."""

    message = "send an API key: `Authorization: Bearer moorage_…`"

    def has_permission(self, request: Request, view: "APIView") -> bool:
        if request.user is None:
            return False
        if Scope.MANAGE not in principal(request).scopes:
            raise Problem(FORBIDDEN, "this key lacks the scope `manage`; create one with it in the console under Keys")
        return True
