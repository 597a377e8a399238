"""Workloads that no row accounts for, as a database brought back from a copy leaves them: found and removed."""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

from inference.clock import database_now
from inference.models import Deployment
from k8s.cluster import Cluster, Object, Ref, Snapshot
from k8s.desired import TENANT_LABEL
from k8s.observe import deployment_id_of
from kernel import ids
from tenants.models import Tenant

log = logging.getLogger(__name__)

# Many sweeps: a row is there before its first object, so nothing that old is on its way to one.
ORPHAN_AFTER = timedelta(seconds=60)


def orphans_delete(cluster: Cluster, snapshot: Snapshot) -> list[Ref]:
    """Delete what our tenants have in a cluster beyond their live deployments; its names.

    Tenants that this installation does not know are another's, and so is all that is theirs. UnreachableError
    where the cluster does not answer.
    """
    workloads = dict(_workloads(snapshot, database_now() - ORPHAN_AFTER))
    live = Deployment.objects.filter(endpoint__archived_at__isnull=True)
    accounted = set(live.filter(id__in={found for _, found in workloads.values()}).values_list("id", flat=True))
    loose = {ref: tenant for ref, (tenant, found) in workloads.items() if found not in accounted}
    if not loose:
        return []
    ours = set(Tenant.objects.filter(id__in=loose.values()).values_list("id", flat=True))
    orphans = [ref for ref, tenant in loose.items() if tenant in ours]
    for ref in orphans:
        log.warning("%s belongs to no live endpoint and is deleted", ref)
    cluster.delete(orphans, grace_s=None)
    return orphans


def _workloads(snapshot: Snapshot, before: datetime) -> Iterator[tuple[Ref, tuple[UUID, UUID]]]:
    """Objects of deployments that are older than that, each with its tenant's and its deployment's id."""
    for item in snapshot.objects:
        deployment_id, tenant_id = deployment_id_of(item), _tenant_id_of(item)
        if deployment_id and tenant_id and _created_at(item, before) < before:
            yield Ref.of(item), (tenant_id, deployment_id)


def _tenant_id_of(item: Object) -> UUID | None:
    try:
        return ids.decode(ids.TENANT, item["metadata"].get("labels", {}).get(TENANT_LABEL, ""))
    except ValueError:
        return None


def _created_at(item: Object, unknown: datetime) -> datetime:
    text = item["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(text) if text else unknown
