"""Facts from a cluster into rows: what watcher and sweep write, and nobody else.

Facts carry the database's instant at which their reading began (`as_of`); older ones never replace newer
ones, so watcher and sweep may overtake each other.
"""

import logging
from collections.abc import Collection, Mapping
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import Prefetch, QuerySet

from inference import ports, silence
from inference.billable import publish_fact
from inference.clock import database_now
from inference.core import facts as encoding
from inference.core.pools import nodes_offered
from inference.core.replicas import ALIVE, TO, Change, Life, follow, slot
from inference.core.words import ReplicaState
from inference.hints import due_mark, hint
from inference.models import ClusterListing, Deployment, Endpoint, Observed, Pool, Replica
from k8s.cluster import Cluster, Object, Snapshot
from k8s.observe import Observed as Facts
from k8s.observe import observe
from kernel import wire

log = logging.getLogger(__name__)

# Deployments that are written in one transaction.
AT_ONCE = 100
_STANDING = Prefetch("replica_rows", Replica.objects.exclude(state=ReplicaState.GONE), to_attr="standing")


def record_listing(cluster_name: str, cluster: Cluster) -> Snapshot:
    """List a cluster whole, record what differs, publish every pod. May raise UnreachableError."""
    with silence.listing(cluster_name):
        as_of = database_now()
        snapshot = cluster.list()
        silence.silence_end(cluster_name)
        pools_follow(cluster_name, snapshot.nodes)
        record(cluster_name, observe(snapshot), as_of=as_of)
        ClusterListing.objects.filter(cluster=cluster_name).update(listed_at=as_of)
        publish_pods(_live(cluster_name).filter(observed__isnull=False))
    return snapshot


def pools_follow(cluster_name: str, nodes: Collection[Object]) -> None:
    """Bring what each node of a cluster's pools offers up to date: nodes join, leave and change."""
    for pool in Pool.objects.filter(cluster=cluster_name).order_by("id"):
        offered = nodes_offered(nodes, pool.node_selector, pool.resource_name)
        if pool.nodes != offered:
            Pool.objects.filter(id=pool.id).update(nodes=offered)


def record(
    cluster_name: str,
    seen: Mapping[UUID, Facts],
    *,
    as_of: datetime,
    only: Collection[UUID] | None = None,
    gone: Collection[UUID] | None = None,
) -> None:
    """Record the facts of a cluster's deployments (of `only`, where given); what `seen` lacks holds nothing.

    `gone` names the pods known to have ended; None means that every pod absent from `seen` has. Facts that
    stand already are not written again, but for one proof of life per serving pod and slot. What there is for a
    pass to act on is due.
    """
    listing = ClusterListing.objects.filter(cluster=cluster_name).first()
    deployments = _live(cluster_name).select_related("observed").prefetch_related(_STANDING)
    if only is not None:
        deployments = deployments.filter(id__in=only)
    unlike = [row.id for row in deployments if not _is_known(row, seen.get(row.id), as_of)]
    for first in range(0, len(unlike), AT_ONCE):
        _record(unlike[first : first + AT_ONCE], seen, as_of, listing, gone)


def publish_pods(deployments: QuerySet[Deployment]) -> None:
    """Write the pods of deployments for the gateways; where they are unreachable the next sweep does it."""
    found = deployments.select_related("endpoint", "observed").prefetch_related(_STANDING)
    try:
        ports.get().publish_pods({deployment.id: _pod_records(deployment) for deployment in found})
    except ports.Unavailable:
        log.warning("pods are not published; the next sweep tries again")


def _pod_records(deployment: Deployment) -> list[wire.PodRecord]:
    """The pods of one deployment, with its `standing` replicas at hand."""
    states = {row.pod_uid: ReplicaState(row.state) for row in deployment.standing}  # type: ignore[attr-defined]
    stored = _observed(deployment)
    facts = encoding.from_json(stored.facts) if stored and stored.facts else None
    return encoding.pod_records(facts, states, stopped=stopped_at(deployment.endpoint) is not None)


def stopped_at(endpoint: Endpoint) -> datetime | None:
    """When the customer ended what runs: the earlier of pause and delete."""
    instants = [at for at in (endpoint.paused_at, endpoint.deletion_requested_at) if at]
    return min(instants, default=None)


def _live(cluster_name: str) -> QuerySet[Deployment]:
    return Deployment.objects.filter(pool__cluster=cluster_name, carrier=None, endpoint__archived_at__isnull=True)


def _observed(deployment: Deployment) -> Observed | None:
    return getattr(deployment, "observed", None)


def _is_known(row: Deployment, found: Facts | None, as_of: datetime) -> bool:
    """Whether these facts stand already, and each billed pod's life in this slot is proven."""
    stored = _observed(row)
    billed = [item for item in row.standing if item.serving_at]  # type: ignore[attr-defined]
    proven = all(item.alive_at and slot(item.alive_at) >= slot(as_of) for item in billed)
    return proven and stored is not None and stored.facts == (encoding.to_json(found) if found else None)


def _record(
    deployment_ids: Collection[UUID],
    seen: Mapping[UUID, Facts],
    as_of: datetime,
    listing: ClusterListing | None,
    gone: Collection[UUID] | None,
) -> None:
    """Write what differs, publish its pods and mark its endpoints due; nothing where newer facts stand already."""
    written, news, fresh = [], set(), []
    with transaction.atomic():
        rows = Deployment.objects.filter(id__in=deployment_ids).order_by("id")
        # Read once they are locked: whom we waited for has just written what is joined to them.
        list(rows.select_for_update().values_list("id"))
        for row in rows.select_related("endpoint", "pool", "observed").prefetch_related(_STANDING):
            stored, found = _observed(row), seen.get(row.id)
            if stored is not None and stored.observed_at >= as_of:
                continue
            written.append(row.id)
            has_turned = _follow_replicas(row, stored, found, as_of, listing, gone)
            facts = encoding.to_json(found) if found else None
            if has_turned or stored is None or stored.facts != facts:
                news.add(row.endpoint_id)
                fresh.append(Observed(deployment=row, tenant_id=row.tenant_id, observed_at=as_of, facts=facts))
        Observed.objects.bulk_create(
            fresh, update_conflicts=True, unique_fields=["deployment"], update_fields=["observed_at", "facts"]
        )
    publish_pods(Deployment.objects.filter(id__in=written))
    if news:
        due_mark(news)
        hint()


def _follow_replicas(
    deployment: Deployment,
    stored: Observed | None,
    found: Facts | None,
    as_of: datetime,
    listing: ClusterListing | None,
    gone: Collection[UUID] | None,
) -> bool:
    """Bring the replicas' rows up to the facts; True where one turned, not merely lived on."""
    before = encoding.from_json(stored.facts) if stored and stored.facts else None
    earlier = {UUID(pod.uid): pod for pod in before.pods} if before else {}
    pods = {UUID(pod.uid): pod for pod in found.pods} if found else {}
    rows: list[Replica] = deployment.standing  # type: ignore[attr-defined]
    lives = [
        Life(
            row.pod_uid,
            ReplicaState(row.state),
            row.serving_at,
            row.alive_at,
            was_ready=row.pod_uid in earlier and earlier[row.pod_uid].ready,
            restarted=row.pod_uid in earlier
            and row.pod_uid in pods
            and earlier[row.pod_uid].restarts != pods[row.pod_uid].restarts,
        )
        for row in rows
        if gone is None or row.pod_uid in pods or row.pod_uid in gone
    ]
    proofs = [at for at in (stored and stored.observed_at, listing and listing.listed_at) if at]
    changes = follow(
        lives,
        pods,
        as_of=as_of,
        proof_at=max(proofs, default=as_of),
        stopped_at=stopped_at(deployment.endpoint),
    )
    serving_at = {row.pod_uid: row.serving_at for row in rows}
    for change in changes:
        _write(deployment, change, serving_at[change.pod_uid], as_of)
    new = [uid for uid, pod in pods.items() if uid not in serving_at and not pod.terminating]
    if new:
        # One that is gone already stays so.
        Replica.objects.bulk_create(
            (Replica(pod_uid=uid, tenant_id=deployment.tenant_id, deployment=deployment) for uid in new),
            ignore_conflicts=True,
        )
    return any(change.fact != ALIVE for change in changes)


def _write(deployment: Deployment, change: Change, serving_at: datetime | None, as_of: datetime) -> None:
    row = {"state": change.state, "alive_at": change.alive_at}
    if change.state is ReplicaState.GONE:
        row["gone_at"] = as_of
    elif change.fact == TO:
        row["serving_at"] = None
    Replica.objects.filter(pod_uid=change.pod_uid).update(**row)
    if change.fact and change.fact_at and serving_at:
        publish_fact(
            deployment=deployment, pod_uid=change.pod_uid, event=change.fact, at=change.fact_at, from_at=serving_at
        )
