"""The only door to a tenant's endpoints: absent and forbidden look the same."""

from uuid import UUID

from inference.models import Endpoint
from kernel import ids
from kernel.problems import NOT_FOUND, Problem


def access_endpoint(*, tenant_id: UUID, endpoint_id: str) -> Endpoint:
    """The tenant's own live endpoint by its public id `ep_…`, its tenant loaded."""
    try:
        found = (
            Endpoint.objects.select_related("tenant")
            .filter(id=ids.decode(ids.ENDPOINT, endpoint_id), tenant_id=tenant_id, archived_at__isnull=True)
            .first()
        )
    except ValueError:
        found = None
    if found is None:
        raise Problem(NOT_FOUND, f"there is no endpoint {endpoint_id[:40]!r}", param="endpoint_id")
    return found
