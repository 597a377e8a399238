"""What may be asked for: every refusal names the field, the limit and the way out. Nothing is written here."""

import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection

from inference.catalogue_files import catalogue
from inference.core.catalogue import TPM_STEP, Release
from inference.core.placement import Placement, place, sentences
from inference.core.words import Rung
from inference.models import Deployment, Pool
from inference.selectors import carrier_of, offer_of, pool_facts, reserved_tpm
from kernel.problems import CONFLICT, FORBIDDEN, INVALID_PARAMETER, NO_POOL_FITS, QUOTA_EXCEEDED, Problem
from tenants.models import TenantKind
from tenants.selectors import tenant_get
from tenants.services import quota_lock

MAX_NAME_LENGTH = 48
MAX_REPLICAS = 64
NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
USED = """
SELECT count(DISTINCT e.id), COALESCE(sum(d.replicas * d.accelerators), 0), COALESCE(bool_or(e.name = %(name)s), false)
FROM endpoint e LEFT JOIN deployment d ON d.endpoint_id = e.id
WHERE e.tenant_id = %(tenant)s AND e.archived_at IS NULL
"""


class Used(NamedTuple):
    """A tenant's live endpoints, their accelerators, whether one has the name asked about, and its quota's limits."""

    endpoints: int
    accelerators: int
    is_named: bool
    limits: dict[str, int]


def name_of(text: str) -> str:
    """NFKC folds look-alikes of width and style; what is then not plain ASCII is refused: nothing poses."""
    folded = unicodedata.normalize("NFKC", text)
    if not 1 <= len(folded) <= MAX_NAME_LENGTH or not NAME_CHARS.issuperset(folded):
        raise Problem(
            INVALID_PARAMETER,
            f"name has 1 to {MAX_NAME_LENGTH} of the characters a-z, 0-9 and hyphen",
            param="name",
        )
    return folded


def release_of(release_id: str) -> Release:
    """The release, where it can be served."""
    release = catalogue().releases.get(release_id)
    if release is None or not release.servable:
        raise Problem(
            INVALID_PARAMETER,
            f"release {release_id!r} is not in the catalogue; list them with GET /api/v1/releases",
            param="release",
        )
    return release


def rung_of(text: str, tenant_id: UUID) -> Rung:
    """The rung, where this tenant may buy it."""
    if text not in set(Rung):
        raise Problem(INVALID_PARAMETER, f"rung is one of {', '.join(Rung)}", param="rung")
    rung = Rung(text)
    if rung is Rung.SHARED and tenant_get(tenant_id).kind != TenantKind.OPERATOR:
        raise Problem(
            FORBIDDEN,
            "rung shared is run by the operator for everybody; call it by its name, or choose dedicated",
            param="rung",
        )
    return rung


def check_rung(rung: Rung, *, tpm: int, is_shaped: bool) -> None:
    """Tokens a minute belong to reservations, the engines' shape to all others."""
    if rung is not Rung.RESERVED and tpm:
        raise Problem(INVALID_PARAMETER, "tpm is of rung reserved alone; leave it out", param="tpm")
    if rung is Rung.RESERVED and is_shaped:
        sentence = "a reservation rides on the operator's engines: leave out accelerator, replicas and paused"
        raise Problem(INVALID_PARAMETER, sentence, param="rung")


def check_replicas(replicas: int) -> None:
    """A number that an endpoint may have."""
    if not 0 <= replicas <= MAX_REPLICAS:
        raise Problem(INVALID_PARAMETER, f"replicas is from 0 to {MAX_REPLICAS}", param="replicas")


def used_lock(tenant_id: UUID, name: str = "") -> Used:
    """What a tenant has, which nobody else changes until the transaction ends."""
    limits = quota_lock(tenant_id=tenant_id)
    with connection.cursor() as cursor:
        cursor.execute(USED, {"tenant": tenant_id, "name": name})
        endpoints, accelerators, is_named = cursor.fetchone()
    return Used(endpoints, accelerators, is_named, limits)


def check_name(used: Used, name: str) -> None:
    """No live endpoint of the tenant has this name."""
    if used.is_named:
        raise Problem(CONFLICT, f"name {name!r} is taken by another endpoint; choose another", param="name")


def check_endpoints(used: Used) -> None:
    """One endpoint more is within the tenant's quota."""
    limit = used.limits.get("endpoints", 0)
    if used.endpoints >= limit:
        raise Problem(
            QUOTA_EXCEEDED,
            f"{used.endpoints} of {limit} endpoints are in use; delete one or ask for a higher quota",
            param="endpoints",
        )


def check_accelerators(used: Used, more: int) -> None:
    """So many accelerators more are within the tenant's quota."""
    limit = used.limits.get("accelerators", 0)
    if used.accelerators + more > limit:
        raise Problem(
            QUOTA_EXCEEDED,
            f"{more} accelerators are asked for and {max(0, limit - used.accelerators)} of {limit} are left; "
            "ask for fewer replicas, delete an endpoint or ask for a higher quota",
            param="replicas",
        )


def berth_of(release: Release, region: str, replicas: int, accelerator: str | None) -> dict[str, Any]:
    """Columns of a deployment with engines of its own."""
    pools = list(Pool.objects.all())
    placement = _place(release, pools, region, replicas, accelerator)
    chosen, recipe = placement.pool, placement.recipe
    assert chosen is not None
    assert recipe is not None
    pool = next(pool for pool in pools if (pool.region, pool.name) == (region, chosen.name))
    return {"pool": pool, "recipe": recipe.id, "replicas": replicas, "accelerators": recipe.cards}


def ride_of(release: Release, region: str, tpm: int) -> dict[str, Any]:
    """Columns of a deployment that rides on the operator's shared one."""
    carrier = carrier_of(release.id, region)
    if carrier is None:
        raise Problem(
            NO_POOL_FITS,
            f"no shared engines of {release.id} run in region {region} to reserve from; choose dedicated",
            param="release",
        )
    check_tpm(carrier, tpm)
    return {
        "pool": carrier.pool,
        "recipe": carrier.recipe,
        "replicas": 0,
        "accelerators": 0,
        "carrier": carrier,
        "tpm": tpm,
    }


def check_tpm(carrier: Deployment, tpm: int, *, before: int = 0) -> None:
    """Refuse what cannot be reserved; else it cannot be taken by anybody else until the transaction ends."""
    offer = offer_of(carrier, lock=True)
    if offer is None:
        raise Problem(
            NO_POOL_FITS,
            f"recipe {carrier.recipe} has no measured throughput to reserve from; choose dedicated",
            param="release",
        )
    if tpm < offer.min_tpm or tpm % TPM_STEP:
        sentence = f"tpm is a multiple of {TPM_STEP} and at least {offer.min_tpm}"
        raise Problem(INVALID_PARAMETER, sentence, param="tpm")
    if tpm - before > offer.free_tpm and tpm > before:
        raise Problem(
            NO_POOL_FITS,
            f"tpm {tpm} is too much: {offer.free_tpm + before} of the {offer.total_tpm} tokens a minute that are let "
            "here are free for it; ask for less, or choose dedicated",
            param="tpm",
        )


def check_riders(deployment: Deployment, replicas: int) -> None:
    """Shared engines stay while reservations need them."""
    if deployment.endpoint.rung != Rung.SHARED:
        return
    taken = reserved_tpm(deployment.id, lock=True)
    recipe = catalogue().recipes.get(deployment.recipe)
    carried = recipe.reservable.tpm_per_replica * replicas if recipe and recipe.reservable else 0
    if taken > carried:
        raise Problem(
            CONFLICT,
            f"{taken} tokens a minute are reserved here and {replicas} replicas of {deployment.recipe} carry "
            f"{carried}; keep more until the reservations have ended",
            param="replicas",
        )


def check_recipe(deployment: Deployment, recipe_id: str) -> None:
    """Another recipe can take a deployment's place on its pool, replica for replica."""
    endpoint, pool = deployment.endpoint, deployment.pool
    release = release_of(endpoint.release)
    placement = place(
        catalogue(),
        release,
        [pool_facts(pool)],
        region=endpoint.region,
        replicas=max(deployment.replicas, 1),
        recipe_id=recipe_id,
    )
    if placement.recipe is None:
        raise Problem(NO_POOL_FITS, sentences(placement.refusals), param="recipe")
    if placement.recipe.cards != deployment.accelerators:
        raise Problem(
            NO_POOL_FITS,
            f"recipe {recipe_id} takes {placement.recipe.cards} accelerators a replica and {deployment.recipe} "
            f"{deployment.accelerators}; create an endpoint for it",
            param="recipe",
        )


def _place(release: Release, pools: Iterable[Pool], region: str, replicas: int, accelerator: str | None) -> Placement:
    placement = place(
        catalogue(),
        release,
        [pool_facts(pool) for pool in pools],
        region=region,
        replicas=max(replicas, 1),
        accelerator=accelerator,
    )
    if placement.pool is None:
        raise Problem(
            NO_POOL_FITS,
            sentences(placement.refusals),
            extra={
                "pools": [
                    {"pool": item.pool, "reason": item.reason, "detail": item.sentence} for item in placement.refusals
                ]
            },
        )
    return placement


def check_pool(deployment: Deployment, replicas: int) -> None:
    """The pool has as many accelerators in all."""
    needed = deployment.accelerators * replicas
    if needed > deployment.pool.capacity:
        raise Problem(
            NO_POOL_FITS,
            f"{replicas} replicas take {needed} accelerators and pool {deployment.pool.name} has "
            f"{deployment.pool.capacity}; ask for fewer replicas",
            param="replicas",
        )
