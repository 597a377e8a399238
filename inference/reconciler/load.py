"""Rows to the values that `decide` reads: for many endpoints by a handful of queries."""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Max, Q

from inference.catalogue_files import catalogue
from inference.clock import database_now
from inference.core import conditions
from inference.core import facts as encoding
from inference.core.catalogue import TPM_STEP
from inference.core.reserved import ReservedRow
from inference.core.rows import Absent, DeploymentRow, EndpointRow, Fault, ReplicaRow
from inference.core.words import ReplicaState, Rung
from inference.core.workload import workload
from inference.models import ClusterListing, Deployment, Endpoint, Observed, Pool, Replica
from inference.reconciler.claim import Claim
from inference.selectors import nodes_free
from k8s.desired import PoolBinding, RegionBinding, TenantSpec, WorkloadSpec
from tenants.models import Standing
from tenants.selectors import quota_limits

log = logging.getLogger(__name__)

# A write is stamped at most so long after it took effect, and what a watch says so long after that is no echo of it.
ECHO = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a pass works on: the values to decide on, the rows they came from, and which facts were read."""

    row: EndpointRow | ReservedRow
    endpoint: Endpoint
    deployments: dict[UUID, Deployment]
    read_at: dict[UUID, datetime]


def load(held: Claim, endpoint_ids: Collection[UUID]) -> Iterator[Loaded]:
    """Everything that one pass over those of these that are still ours needs, read without a lock.

    An endpoint whose rows make no sense is told of and left out.
    """
    endpoints = list(held.endpoints.filter(id__in=endpoint_ids).select_related("tenant").order_by("id"))
    around = _Around(endpoints)
    for endpoint in endpoints:
        try:
            yield around.loaded(endpoint)
        except Exception:
            log.exception("endpoint %s cannot be read", endpoint.id)


def stop_of(endpoint: Endpoint) -> str:
    """Why the endpoint's engines must not run: Suspended before Paused, "" where they may."""
    if endpoint.tenant.standing == Standing.SUSPENDED:
        return conditions.SUSPENDED
    return conditions.PAUSED if endpoint.paused_at else ""


class _Around:
    """The rows around some endpoints: each table is read once, for all of them."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._now = database_now()
        self._limits = quota_limits({endpoint.tenant_id for endpoint in endpoints}, "accelerators")
        ids = [endpoint.id for endpoint in endpoints]
        self._deployments: dict[UUID, list[Deployment]] = defaultdict(list)
        for item in Deployment.objects.filter(endpoint__in=ids).order_by("id"):
            self._deployments[item.endpoint_id].append(item)
        found = [item for items in self._deployments.values() for item in items]
        deployment_ids = [item.id for item in found]
        regions = {endpoint.region for endpoint in endpoints}
        around = Pool.objects.filter(Q(id__in={item.pool_id for item in found}) | Q(region__in=regions))
        pools = {pool.id: pool for pool in around}
        self._resource_names: dict[str, set[str]] = defaultdict(set)
        for pool in pools.values():
            self._resource_names[pool.region] |= {pool.resource_name} - {""}
        of = {endpoint.id: endpoint for endpoint in endpoints}
        for item in found:
            item.endpoint, item.pool = of[item.endpoint_id], pools[item.pool_id]
        self._observed = Observed.objects.in_bulk(deployment_ids)
        self._listed_at = dict(ClusterListing.objects.values_list("cluster", "listed_at"))
        self._replicas: dict[UUID, list[ReplicaRow]] = defaultdict(list)
        standing = Replica.objects.filter(deployment__in=deployment_ids).exclude(state=ReplicaState.GONE)
        for pod in standing.order_by("pod_uid"):
            row = ReplicaRow(pod.pod_uid, ReplicaState(pod.state), proven=pod.serving_at is not None)
            self._replicas[pod.deployment_id].append(row)

    def loaded(self, endpoint: Endpoint) -> Loaded:
        """One endpoint of them."""
        deployments = self._deployments[endpoint.id]
        by_id = {item.id: item for item in deployments}
        if endpoint.rung == Rung.RESERVED:
            return Loaded(_reserved_row(endpoint, deployments[0]), endpoint, by_id, {})
        row = EndpointRow(
            id=endpoint.id,
            generation=endpoint.generation,
            observed_generation=endpoint.observed_generation,
            stop=stop_of(endpoint),
            deleting=endpoint.deletion_requested_at is not None,
            routed=endpoint.routed,
            conditions=conditions.from_json(endpoint.conditions),
            deployments=tuple(self._deployment_row(endpoint, item) for item in deployments),
        )
        read_at = {item: seen.observed_at for item in by_id if (seen := self._observed.get(item)) is not None}
        return Loaded(row, endpoint, by_id, read_at)

    def _deployment_row(self, endpoint: Endpoint, deployment: Deployment) -> DeploymentRow:
        pool, stored = deployment.pool, self._observed.get(deployment.id)
        wanted = _workload(endpoint, deployment, pool)
        spans = isinstance(wanted, WorkloadSpec) and wanted.nodes > 1
        told = _is_told(deployment, stored)
        return DeploymentRow(
            workload=wanted,
            pool=_pool_binding(pool),
            region=RegionBinding(name=endpoint.region),
            tenant=self._tenant_spec(endpoint),
            accelerators=deployment.accelerators,
            paid=endpoint.rung != Rung.SHARED,
            reserved=deployment.reserved,
            held=deployment.held,
            applied=deployment.applied,
            fault=Fault(**deployment.fault) if deployment.fault else None,
            fresh=self._is_fresh(deployment, pool, stored),
            told=told,
            heard=told and deployment.applied_at is not None and self._now > deployment.applied_at + ECHO,
            seen=encoding.from_json(stored.facts) if stored and stored.facts else None,
            replicas=tuple(self._replicas[deployment.id]),
            weights_known=pool.releases is not None and endpoint.release in pool.releases,
            pool_free=pool.capacity - pool.reserved,
            nodes_free=nodes_free(pool, catalogue().recipes[deployment.recipe].cards_per_node) if spans else 0,
            owned=deployment.owned,
        )

    def _is_fresh(self, deployment: Deployment, pool: Pool, stored: Observed | None) -> bool:
        """Whether the facts rest on a whole listing that began after the last attempt to change the cluster."""
        if deployment.applied_at is None or stored is None:
            return False
        listed_at = self._listed_at.get(pool.cluster)
        return listed_at is not None and listed_at > deployment.applied_at

    def _tenant_spec(self, endpoint: Endpoint) -> TenantSpec:
        """The same for every deployment of a tenant in a region: the namespace's quota follows the tenant's."""
        limit = self._limits.get(endpoint.tenant_id, 0)
        # Twice, so that a replacement may start beside a pod that still serves or is ending; what a tenant may have
        # in all is decided before, here the namespace stops what got past that.
        resources: dict[Any, int] = dict.fromkeys(self._resource_names[endpoint.region], 2 * limit)
        return TenantSpec(tenant_id=endpoint.tenant_id, pods=2 * max(limit, 1), accelerators=resources)


def _reserved_row(endpoint: Endpoint, deployment: Deployment) -> ReservedRow:
    carrier = deployment.carrier
    assert carrier is not None
    seen = Replica.objects.filter(deployment=carrier).aggregate(last=Max("alive_at"))["last"]
    return ReservedRow(
        deployment_id=deployment.id,
        generation=endpoint.generation,
        stop=stop_of(endpoint),
        deleting=endpoint.deletion_requested_at is not None,
        routed=endpoint.routed,
        conditions=conditions.from_json(endpoint.conditions),
        ktpm=deployment.tpm // TPM_STEP,
        metered_ktpm=deployment.metered_ktpm,
        held=deployment.held,
        absent=_absent(endpoint, carrier.recipe),
        carried=conditions.from_json(carrier.endpoint.conditions),
        serving=carrier.endpoint.serving,
        ends_at=endpoint.deletion_requested_at or (None if carrier.endpoint.serving else seen),
    )


def _workload(endpoint: Endpoint, deployment: Deployment, pool: Pool) -> WorkloadSpec | Absent:
    known = catalogue()
    why = _absent(endpoint, deployment.recipe)
    if why:
        return Absent(deployment.id, deployment.replicas, why)
    release, recipe = known.releases[endpoint.release], known.recipes[deployment.recipe]
    engine = pool.engine_images.get(recipe.image or "")
    if engine is None:
        why = f"pool {pool.name} no longer has an engine image for recipe {recipe.id}; ask the operator for it"
        return Absent(deployment.id, deployment.replicas, why)
    return workload(
        tenant_id=endpoint.tenant_id,
        endpoint_id=endpoint.id,
        deployment_id=deployment.id,
        generation=endpoint.generation,
        replicas=deployment.replicas,
        release=release,
        recipe=recipe,
        image=engine["image"],
        weights_root=pool.weights_root,
        counts_cards=bool(pool.resource_name),
    )


def _absent(endpoint: Endpoint, recipe: str) -> str:
    """Which entry the catalogue forgot, in a sentence; "" where it knows both."""
    known = catalogue()
    if endpoint.release not in known.releases:
        what = f"release {endpoint.release}"
    elif recipe not in known.recipes:
        what = f"recipe {recipe}"
    else:
        return ""
    return f"{what} is no longer in the catalogue; delete the endpoint, or ask the operator to bring it back"


def _is_told(deployment: Deployment, stored: Observed | None) -> bool:
    """Whether the facts came after the last write, or so close before that it may have been made already."""
    if deployment.applied_at is None or stored is None:
        return False
    return stored.observed_at > deployment.applied_at - ECHO


def _pool_binding(pool: Pool) -> PoolBinding:
    return PoolBinding(
        name=pool.name,
        arch=pool.arch,
        resource_name=pool.resource_name or None,
        runtime_class=pool.runtime_class or None,
        node_selector=pool.node_selector,
        tolerations=tuple(pool.tolerations),
        weights_volume=pool.weights_volume,
        weights_mount=pool.weights_root,
    )
