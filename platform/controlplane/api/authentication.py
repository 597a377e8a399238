"""DRF's view of the principal that TenantMiddleware found. Cookies mean nothing on API routes."""

from typing import TYPE_CHECKING, cast

from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from controlplane.middleware import Principal, ScopedRequest

if TYPE_CHECKING:  # rest_framework.views imports this module by name
    from rest_framework.views import APIView


def principal(request: Request) -> Principal:
    """Who asks; every view behind HoldsKey has one."""
    assert isinstance(request.user, Principal)
    return request.user


class ApiKeyAuthentication(BaseAuthentication):
    """request.user is the Principal."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        found = cast(ScopedRequest, request._request).principal
        return (found, None) if found else None

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="moorage"'


class HoldsKey(BasePermission):
    """The provisioning API wants a key; what its scopes allow was asked at the gate."""

    message = "send an API key: `Authorization: Bearer moorage_…`"

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return request.user is not None
