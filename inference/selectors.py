"""Reads of the inference room: endpoints with their phase, routes, the catalogue, pools."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Prefetch, Q, QuerySet

from inference.catalogue_files import catalogue
from inference.core import conditions
from inference.core.catalogue import Accelerator, Recipe, Release
from inference.core.placement import EngineImage, PoolFacts, whole_nodes, with_room
from inference.core.reserved import Offer
from inference.core.words import Phase, Rung, Visibility
from inference.models import Deployment, Endpoint, Pool
from kernel import ids, wire
from kernel.problems import NOT_FOUND, Problem
from tenants.models import Standing


@dataclass(frozen=True, slots=True)
class EndpointView:
    """An endpoint as people and clients see it. `id` is `ep_…`; `conditions` are dicts of text.

    `sku` prices it (dedicated: accelerator time; shared: tokens; reserved: days of `tpm`, the tokens a minute that
    are kept for it); `accelerators` is what one replica takes. A reservation's pool, recipe and replicas are those
    of the shared engines that serve it.
    """

    id: str
    uuid: UUID
    tenant_id: UUID
    name: str
    release: str
    rung: str
    visibility: str
    region: str
    phase: Phase
    reason: str
    message: str
    conditions: tuple[dict[str, str], ...]
    generation: int
    observed_generation: int
    replicas: int
    serving: int
    accelerator: str
    accelerators: int
    pool: str
    recipe: str
    sku: str
    tpm: int
    deployment_id: UUID
    created_at: datetime
    paused_at: datetime | None
    deletion_requested_at: datetime | None


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool as customers see it: `free` is what nobody has reserved."""

    name: str
    region: str
    accelerator: str
    accelerator_name: str
    capacity: int
    free: int


@dataclass(frozen=True, slots=True)
class ReleaseView:
    """A release of the catalogue with what this installation can run it on, in recipes and pools.

    `skus` maps a rung and an accelerator ("" for shared and reserved) to the SKU that prices it. `offer` is what
    can be reserved here, None where the release is not let in reservations.
    """

    release: Release
    recipes: tuple[Recipe, ...]
    accelerators: tuple[Accelerator, ...]
    pools: tuple[PoolView, ...]
    skus: dict[tuple[str, str], str]
    max_model_len: int
    offer: Offer | None


def endpoint_list_for(tenant_id: UUID) -> list[EndpointView]:
    """A tenant's live endpoints, newest first."""
    return [endpoint_view(item) for item in _endpoints().filter(tenant_id=tenant_id).order_by("-created_at", "-id")]


def endpoint_list_public() -> list[EndpointView]:
    """The operator's shared endpoints, by name."""
    return [endpoint_view(item) for item in _endpoints().filter(visibility=Visibility.PUBLIC).order_by("name", "id")]


def endpoint_get(*, tenant_id: UUID, endpoint_id: str) -> EndpointView:
    """One live endpoint that the tenant owns or everybody may see. Problem NOT_FOUND for every other id."""
    try:
        visible = Q(tenant_id=tenant_id) | Q(visibility=Visibility.PUBLIC)
        found = _endpoints().filter(visible, id=ids.decode(ids.ENDPOINT, endpoint_id)).first()
    except ValueError:
        found = None
    if found is None:
        raise Problem(NOT_FOUND, f"there is no endpoint {endpoint_id[:40]!r}", param="endpoint_id")
    return endpoint_view(found)


def endpoint_view(endpoint: Endpoint, deployment: Deployment | None = None) -> EndpointView:
    """The view of a row (and its deployment's, where that is at hand), its phase derived from its conditions."""
    deployment = deployment or endpoint.deployments.all()[0]
    engines = deployment.carrier or deployment
    known = conditions.from_json(endpoint.conditions)
    ready = next((item for item in known if item.type == conditions.READY), None)
    return EndpointView(
        id=ids.encode(ids.ENDPOINT, endpoint.id),
        uuid=endpoint.id,
        tenant_id=endpoint.tenant_id,
        name=endpoint.name,
        release=endpoint.release,
        rung=endpoint.rung,
        visibility=endpoint.visibility,
        region=endpoint.region,
        phase=conditions.phase(
            known,
            paused=endpoint.paused_at is not None,
            suspended=endpoint.suspended,
            deleting=endpoint.deletion_requested_at is not None,
            archived=endpoint.archived_at is not None,
            current=endpoint.generation == endpoint.observed_generation,
        ),
        reason=ready.reason if ready else "",
        message=ready.message if ready else "",
        conditions=tuple(endpoint.conditions),
        generation=endpoint.generation,
        observed_generation=endpoint.observed_generation,
        replicas=engines.replicas,
        serving=endpoint.serving,
        accelerator=engines.pool.accelerator,
        accelerators=deployment.accelerators,
        pool=engines.pool.name,
        recipe=engines.recipe,
        sku=deployment.sku,
        tpm=deployment.tpm,
        deployment_id=deployment.id,
        created_at=endpoint.created_at,
        paused_at=endpoint.paused_at,
        deletion_requested_at=endpoint.deletion_requested_at,
    )


def route_list(endpoint_ids: Collection[UUID] | None = None) -> list[wire.RouteRecord]:
    """The routes of all live endpoints, or of those of these (system role), without those whose delete was asked
    for or which the catalogue forgot."""
    live = _endpoints().select_related("tenant").filter(deletion_requested_at__isnull=True).order_by("id")
    if endpoint_ids is not None:
        live = live.filter(id__in=endpoint_ids)
    return [route for route in map(_route, live) if route is not None]


def endpoint_ids_live() -> set[str]:
    """Public ids of all endpoints that are to stay (system role)."""
    live = Endpoint.objects.filter(deletion_requested_at__isnull=True, archived_at__isnull=True)
    return {ids.encode(ids.ENDPOINT, found) for found in live.values_list("id", flat=True)}


def release_list(region: str) -> list[ReleaseView]:
    """Releases that some recipe serves; those that run here and now come first."""
    pools = list(Pool.objects.filter(region=region).order_by("name"))
    views = [
        _release_view(release, pools, region)
        for release in catalogue().releases.values()
        if release.servable and catalogue().recipes_of(release.id)
    ]
    return sorted(views, key=lambda view: not view.pools)


def pool_list(region: str) -> list[PoolView]:
    """A region's pools by name."""
    return [_pool_view(pool) for pool in Pool.objects.filter(region=region).order_by("name")]


def nodes_free(pool: Pool, cards_per_node: int) -> int:
    """Nodes of a pool with so many accelerators that nobody is on, as its reservations and its pods' facts say.

    A replica that has no pod yet may land anywhere: it counts as being on a node of its own, and one that spans
    nodes on as many.
    """
    unplaced, taken = 0, set[str]()
    known = catalogue().recipes
    there = Deployment.objects.filter(pool=pool, reserved__gt=0).select_related("observed")
    for item in there:
        if (recipe := known.get(item.recipe)) is not None and recipe.nodes > 1:
            unplaced += item.reserved // recipe.cards * recipe.nodes
            continue
        stored = getattr(item, "observed", None)
        nodes = [pod["node"] for pod in (stored.facts or {"pods": []})["pods"] if pod["node"]] if stored else []
        unplaced += max(0, item.reserved // item.accelerators - len(nodes))
        taken.update(nodes)
    return with_room(whole_nodes(pool.nodes, taken=taken, unplaced=unplaced), cards_per_node)


def pool_facts(pool: Pool) -> PoolFacts:
    """A pool as placement sees it."""
    return PoolFacts(
        pool.name,
        pool.region,
        pool.accelerator,
        pool.capacity,
        pool.capacity - pool.reserved,
        {repo: EngineImage(item["image"], item["version"]) for repo, item in pool.engine_images.items()},
        frozenset(pool.releases) if pool.releases is not None else None,
        tuple(pool.nodes.values()),
    )


def carrier_of(release_id: str, region: str) -> Deployment | None:
    """The deployment of the operator's shared endpoint on which reservations of a release ride."""
    shared = Deployment.objects.filter(
        endpoint__visibility=Visibility.PUBLIC,
        endpoint__release=release_id,
        endpoint__region=region,
        endpoint__deletion_requested_at=None,
        endpoint__archived_at=None,
    )
    return shared.select_related("endpoint", "pool").order_by("id").first()


def offer_of(carrier: Deployment, *, lock: bool = False) -> Offer | None:
    """What a shared deployment lets in reservations; with `lock`, nobody else takes of it in this transaction.

    None where its recipe lets nothing.
    """
    taken = reserved_tpm(carrier.id, lock=lock)
    if lock:  # before it was ours, its replicas, its recipe or its end may have been changed
        carrier.refresh_from_db()
    recipe = catalogue().recipes.get(carrier.recipe)
    if recipe is None or recipe.reservable is None:
        return None
    ends = carrier.endpoint.paused_at or carrier.endpoint.deletion_requested_at
    replicas = 0 if ends else carrier.replicas
    return Offer(recipe.reservable.min_tpm, recipe.reservable.tpm_per_replica * replicas, taken)


def reserved_tpm(carrier_id: UUID, *, lock: bool) -> int:
    """Tokens a minute that all tenants together reserved of a shared deployment; `lock` as in `offer_of`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT reserved_tpm(%s, %s)", [carrier_id, lock])
        return int(cursor.fetchone()[0])


def sku_of(release_id: str, rung: Rung, accelerator: str) -> str:
    """What is priced: tokens of a shared release, days of reserved ones, or accelerator time of a dedicated one."""
    return f"{release_id}:{rung}:{accelerator}" if rung is Rung.DEDICATED else f"{release_id}:{rung}"


def _release_view(release: Release, pools: Iterable[Pool], region: str) -> ReleaseView:
    known = catalogue()
    recipes = known.recipes_of(release.id)
    names = dict.fromkeys(name for recipe in recipes for name in recipe.accelerators)
    fitting = (
        pool for pool in pools if pool.accelerator in names and (pool.releases is None or release.id in pool.releases)
    )
    carrier = carrier_of(release.id, region)
    offer = offer_of(carrier) if carrier else None
    skus = {(Rung.DEDICATED.value, name): sku_of(release.id, Rung.DEDICATED, name) for name in names}
    if offer:
        skus[Rung.RESERVED.value, ""] = sku_of(release.id, Rung.RESERVED, "")
    return ReleaseView(
        release,
        recipes,
        tuple(known.accelerators[name] for name in names),
        tuple(_pool_view(pool) for pool in fitting),
        {(Rung.SHARED.value, ""): sku_of(release.id, Rung.SHARED, ""), **skus},
        max(recipe.max_model_len or release.max_context for recipe in recipes),
        offer,
    )


def _pool_view(pool: Pool) -> PoolView:
    chip = catalogue().accelerators.get(pool.accelerator)
    return PoolView(
        pool.name,
        pool.region,
        pool.accelerator,
        chip.name if chip else pool.accelerator,
        pool.capacity,
        max(0, pool.capacity - pool.reserved),
    )


def _endpoints() -> QuerySet[Endpoint, Endpoint]:
    deployments: Any = Prefetch(
        "deployments", Deployment.objects.select_related("pool", "carrier__pool").order_by("id")
    )
    live = Endpoint.objects.filter(archived_at__isnull=True)
    return live.prefetch_related(deployments)


def _route(endpoint: Endpoint) -> wire.RouteRecord | None:
    deployments = list(endpoint.deployments.all())
    engines = [item.carrier or item for item in deployments]
    release = catalogue().releases.get(endpoint.release)
    recipes = [catalogue().recipes.get(item.recipe) for item in engines]
    if release is None or None in recipes:
        return None
    known = [recipe for recipe in recipes if recipe is not None]
    lengths = [recipe.max_model_len or release.max_context for recipe in known]
    return wire.RouteRecord(
        endpoint_id=ids.encode(ids.ENDPOINT, endpoint.id),
        tenant_id=str(endpoint.tenant_id),
        shared=endpoint.visibility == Visibility.PUBLIC,
        model=endpoint.name,
        served_name=release.id,
        region=endpoint.region,
        max_model_len=min(lengths),
        generation=endpoint.generation,
        running=endpoint.paused_at is None and endpoint.tenant.standing != Standing.SUSPENDED,
        created=int(endpoint.created_at.timestamp()),
        deployments=[
            wire.DeploymentRoute(
                str(engine.id),
                item.weight,
                item.sku,
                beyond_sku=item.carrier.sku if item.carrier else "",
                prefix_affinity=recipe.prefix_affinity,
            )
            for item, engine, recipe in zip(deployments, engines, known, strict=True)
        ],
        tpm=sum(item.tpm for item in deployments),
    )
