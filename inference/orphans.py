"""Workloads that no row accounts for, as a database brought back from a copy leaves them.

The same secret and tenants do not prove whose they are: a copy of the database knows both.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from inference import clusters
from inference.clock import database_now
from inference.models import Deployment
from k8s.cluster import Cluster, Object, Ref, Snapshot, UnreachableError
from k8s.desired import TENANT_LABEL
from k8s.observe import deployment_id_of
from kernel import ids
from tenants.models import Tenant
from tenants.services import audit_write

log = logging.getLogger(__name__)

# Many sweeps: a row is there before its first object, so nothing that old is on its way to one.
ORPHAN_AFTER = timedelta(seconds=60)


def orphans_sweep(cluster: Cluster, snapshot: Snapshot) -> list[Ref]:
    """Delete what is left of deployments that this database knows to have ended; their names.

    What it does not know is only told of: it may be the work of the installation that this one is a copy of.
    UnreachableError where the cluster does not answer.
    """
    ended, unknown = _orphans(snapshot)
    for ref in unknown:
        log.warning("%s is of a deployment that is not in this database; see `manage.py cluster orphans`", ref)
    for ref in ended:
        log.warning("%s is of a deployment that has ended and is deleted", ref)
    if ended:
        cluster.delete(ended, grace_s=None)
    return ended


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What a cluster says now: how many nodes it has, and what in it is nobody's. `silence` is why it says nothing."""

    name: str
    nodes: int
    orphans: tuple[Ref, ...]
    silence: str


def cluster_state(name: str) -> ClusterState:
    """Ask a cluster, whole."""
    try:
        snapshot = clusters.cluster(name).list()
    except UnreachableError as error:
        return ClusterState(name, 0, (), str(error))
    return ClusterState(name, len(snapshot.nodes), tuple(orphans_list(snapshot)), "")


def orphans_list(snapshot: Snapshot) -> list[Ref]:
    """What our tenants have in a cluster of deployments that this database does not know."""
    return _orphans(snapshot)[1]


def orphans_delete(*, name: str, actor: str) -> list[Ref]:
    """Delete what `orphans_list` finds in a cluster, by a person's word; its names. UnreachableError as above."""
    cluster = clusters.cluster(name)
    found = orphans_list(cluster.list())
    if found:
        audit_write(
            actor=actor,
            tenant_id=None,
            action="cluster.orphans_deleted",
            detail={"name": name, "objects": [str(ref) for ref in found]},
        )
        cluster.delete(found, grace_s=None)
    return found


def _orphans(snapshot: Snapshot) -> tuple[list[Ref], list[Ref]]:
    """Our tenants' workloads without a live deployment: those whose deployment ended, and those of unknown ones.

    Tenants that this installation does not know are another's, and so is all that is theirs.
    """
    workloads = dict(_workloads(snapshot, database_now() - ORPHAN_AFTER))
    rows = Deployment.objects.filter(id__in={found for _, found in workloads.values()})
    ended = dict(rows.values_list("id", "endpoint__archived_at"))
    loose = {ref: of for ref, of in workloads.items() if of[1] not in ended or ended[of[1]] is not None}
    if not loose:
        return [], []
    ours = set(Tenant.objects.filter(id__in={tenant for tenant, _ in loose.values()}).values_list("id", flat=True))
    own = {ref: deployment for ref, (tenant, deployment) in loose.items() if tenant in ours}
    return [ref for ref in own if own[ref] in ended], [ref for ref in own if own[ref] not in ended]


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
