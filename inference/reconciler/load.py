"""Rows to the values that `decide` reads."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Max

from inference.catalogue_files import catalogue
from inference.core import conditions
from inference.core import facts as encoding
from inference.core.catalogue import TPM_STEP
from inference.core.reserved import ReservedRow
from inference.core.rows import Absent, DeploymentRow, EndpointRow, Fault, ReplicaRow
from inference.core.words import ReplicaState, Rung
from inference.core.workload import workload
from inference.models import ClusterListing, Deployment, Endpoint, Observed, Pool, Replica
from inference.selectors import nodes_free
from k8s.desired import PoolBinding, RegionBinding, TenantSpec, WorkloadSpec
from tenants.models import Standing
from tenants.selectors import quota_limit


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a pass works on: the values to decide on, the rows they came from, and which facts were read."""

    row: EndpointRow | ReservedRow
    endpoint: Endpoint
    deployments: dict[UUID, Deployment]
    read_at: dict[UUID, datetime]


def load(endpoint_id: UUID) -> Loaded:
    """Everything that one pass needs, read without a lock."""
    endpoint = Endpoint.objects.select_related("tenant").get(id=endpoint_id)
    found = Deployment.objects.filter(endpoint=endpoint).select_related("pool", "observed", "carrier__endpoint")
    deployments = list(found.order_by("id"))
    if endpoint.rung == Rung.RESERVED:
        return Loaded(_reserved_row(endpoint, deployments[0]), endpoint, {deployments[0].id: deployments[0]}, {})
    row = EndpointRow(
        id=endpoint.id,
        generation=endpoint.generation,
        observed_generation=endpoint.observed_generation,
        stop=stop_of(endpoint),
        deleting=endpoint.deletion_requested_at is not None,
        routed=endpoint.routed,
        conditions=conditions.from_json(endpoint.conditions),
        deployments=tuple(_deployment_row(endpoint, item) for item in deployments),
    )
    read_at = {item.id: seen.observed_at for item in deployments if (seen := _observed(item)) is not None}
    return Loaded(row, endpoint, {item.id: item for item in deployments}, read_at)


def stop_of(endpoint: Endpoint) -> str:
    """Why the endpoint's engines must not run: Suspended before Paused, "" where they may."""
    if endpoint.tenant.standing == Standing.SUSPENDED:
        return conditions.SUSPENDED
    return conditions.PAUSED if endpoint.paused_at else ""


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


def _observed(deployment: Deployment) -> Observed | None:
    return getattr(deployment, "observed", None)


def _deployment_row(endpoint: Endpoint, deployment: Deployment) -> DeploymentRow:
    pool, stored, wanted = deployment.pool, _observed(deployment), _workload(endpoint, deployment)
    spans = isinstance(wanted, WorkloadSpec) and wanted.nodes > 1
    return DeploymentRow(
        workload=wanted,
        pool=_pool_binding(pool),
        region=RegionBinding(name=endpoint.region),
        tenant=_tenant_spec(endpoint),
        accelerators=deployment.accelerators,
        paid=endpoint.rung != Rung.SHARED,
        reserved=deployment.reserved,
        held=deployment.held,
        applied=deployment.applied,
        fault=Fault(**deployment.fault) if deployment.fault else None,
        fresh=_is_fresh(deployment, stored),
        seen=encoding.from_json(stored.facts) if stored and stored.facts else None,
        replicas=tuple(
            ReplicaRow(item.pod_uid, ReplicaState(item.state), proven=item.serving_at is not None)
            for item in Replica.objects.filter(deployment=deployment)
            .exclude(state=ReplicaState.GONE)
            .order_by("pod_uid")
        ),
        weights_known=pool.releases is not None and endpoint.release in pool.releases,
        pool_free=pool.capacity - pool.reserved,
        nodes_free=nodes_free(pool, catalogue().recipes[deployment.recipe].cards_per_node) if spans else 0,
        owned=deployment.owned,
    )


def _workload(endpoint: Endpoint, deployment: Deployment) -> WorkloadSpec | Absent:
    pool, known = deployment.pool, catalogue()
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


def _is_fresh(deployment: Deployment, stored: Observed | None) -> bool:
    """Whether the facts rest on a whole listing that began after the last attempt to change the cluster."""
    if deployment.applied_at is None or stored is None:
        return False
    listing = ClusterListing.objects.filter(cluster=deployment.pool.cluster).first()
    return listing is not None and listing.listed_at > deployment.applied_at


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


def _tenant_spec(endpoint: Endpoint) -> TenantSpec:
    """The same for every deployment of a tenant in a region: the namespace's quota follows the tenant's."""
    limit = quota_limit(endpoint.tenant_id, "accelerators")
    names = Pool.objects.filter(region=endpoint.region).exclude(resource_name="")
    # Twice, so that a replacement may start beside a pod that still serves or is ending; what a tenant may have in
    # all is decided before, here the namespace stops what got past that.
    resources: dict[Any, int] = dict.fromkeys(names.values_list("resource_name", flat=True), 2 * limit)
    return TenantSpec(tenant_id=endpoint.tenant_id, pods=2 * max(limit, 1), accelerators=resources)
