"""The only door to a tenant's keys: absent and forbidden look the same."""

from uuid import UUID

from kernel.problems import NOT_FOUND, Problem
from tenants.models import ApiKey


def access_api_key(*, tenant_id: UUID, public_id: str) -> ApiKey:
    """The tenant's key by its public id."""
    key = ApiKey.objects.filter(tenant_id=tenant_id, public_id=public_id).first() if public_id.isalnum() else None
    if key is None:
        raise Problem(NOT_FOUND, f"there is no API key {public_id[:12]!r}")
    return key
