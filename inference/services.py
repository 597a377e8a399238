"""Writes of customers' intent. Status is the reconciler's alone."""

import unicodedata
from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import F, Sum

from inference import ports
from inference.catalogue_files import catalogue
from inference.clock import database_now
from inference.core import reserved
from inference.core.catalogue import TPM_STEP, Release
from inference.core.placement import Placement, place, sentences
from inference.core.words import Finalizer, Rung, Visibility
from inference.hints import hint
from inference.models import Deployment, Endpoint, Pool
from inference.selectors import carrier_of, offer_of, pool_facts, sku_of
from kernel.problems import CONFLICT, FORBIDDEN, INVALID_PARAMETER, NO_POOL_FITS, QUOTA_EXCEEDED, Problem
from tenants.models import TenantKind
from tenants.selectors import quota_limit, tenant_get
from tenants.services import audit_write

MAX_NAME_LENGTH = 48
MAX_REPLICAS = 64
NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
HOLD_S = 3600


@transaction.atomic
def endpoint_create(
    *,
    tenant_id: UUID,
    actor: str,
    name: str,
    release: str,
    rung: str,
    region: str,
    accelerator: str | None = None,
    replicas: int = 1,
    tpm: int = 0,
    paused: bool = False,
) -> Endpoint:
    """A new endpoint with its deployment, placed and paid for; it runs once the reconciler has been there.

    `tpm` is what rung reserved keeps of the operator's shared engines, whose accelerators and replicas are not
    the tenant's to choose.

    Problems: invalid_parameter (names the field), conflict (name taken), forbidden (shared is the
    operator's), quota_exceeded, no_pool_fits (every pool's reason, or what is left to reserve),
    insufficient_balance. A pool that is full for now is no problem: the endpoint waits.
    """
    name, known = _name(name), _release(release)
    bought = _rung(rung, tenant_id)
    _replicas(replicas)
    _check_rung(bought, tpm=tpm, is_shaped=accelerator is not None or replicas != 1 or paused)
    _lock_quota(tenant_id)
    if Endpoint.objects.filter(tenant_id=tenant_id, name=name, archived_at__isnull=True).exists():
        raise Problem(CONFLICT, f"name {name!r} is taken by another endpoint; choose another", param="name")
    _check_endpoints(tenant_id)
    if bought is Rung.RESERVED:
        berth = _ride(known, region, tpm)
    else:
        berth = _berth(known, region, replicas, accelerator)
        _check_accelerators(tenant_id, berth["accelerators"] * replicas)
    endpoint = Endpoint.objects.create(
        tenant_id=tenant_id,
        name=name,
        release=known.id,
        rung=bought,
        visibility=Visibility.PUBLIC if bought is Rung.SHARED else Visibility.PRIVATE,
        region=region,
        spec={"tpm": tpm} if tpm else {"replicas": replicas, "accelerator": accelerator},
        paused_at=database_now() if paused else None,
        finalizers=list(reserved.FINALIZERS if tpm else Finalizer),
    )
    sku = sku_of(known.id, bought, berth["pool"].accelerator)
    deployment = Deployment.objects.create(tenant_id=tenant_id, endpoint=endpoint, sku=sku, **berth)
    if replicas and not paused:
        _place_hold(deployment)
    _announce(endpoint, actor, "endpoint.created", {"release": known.id, "rung": bought, **endpoint.spec})
    return endpoint


@transaction.atomic
def endpoint_scale(*, endpoint: Endpoint, actor: str, replicas: int) -> Endpoint:
    """Change how many replicas run; 0 keeps the URL and stops the bill.

    Problems: invalid_parameter (also a release that the catalogue forgot), conflict (being deleted),
    quota_exceeded, no_pool_fits (more than the pool has in all), insufficient_balance.
    """
    _replicas(replicas)
    locked = _lock(endpoint)
    if locked.rung == Rung.RESERVED:
        raise Problem(INVALID_PARAMETER, "a reservation has no replicas of its own: change its tpm", param="replicas")
    deployment = Deployment.objects.select_related("pool", "endpoint").get(endpoint=locked)
    if deployment.replicas == replicas:
        return locked
    _check_riders(deployment, replicas)
    more = deployment.accelerators * (replicas - deployment.replicas)
    if more > 0:
        _release(locked.release)
        _lock_quota(locked.tenant_id)
        _check_accelerators(locked.tenant_id, more)
        _check_pool(deployment, replicas)
    deployment.replicas = replicas
    deployment.save(update_fields=["replicas"])
    if more > 0 and locked.paused_at is None:
        _place_hold(deployment)
    locked.spec = {**locked.spec, "replicas": replicas}
    return _change(locked, actor, "endpoint.scaled", ["spec"], replicas=replicas)


@transaction.atomic
def endpoint_reserve(*, endpoint: Endpoint, actor: str, tpm: int) -> Endpoint:
    """Change a reservation's tokens a minute, at once; a day is billed at the most that it held.

    Problems: invalid_parameter, conflict (being deleted), no_pool_fits (names what is left),
    insufficient_balance.
    """
    locked = _lock(endpoint)
    deployment = Deployment.objects.select_related("endpoint", "carrier__endpoint").get(endpoint=locked)
    if deployment.carrier is None:
        raise Problem(INVALID_PARAMETER, "tpm is of reservations alone; change replicas", param="tpm")
    before = deployment.tpm
    if tpm == before:
        return locked
    _check_tpm(deployment.carrier, tpm, before=before)
    deployment.tpm = tpm
    if tpm > before:
        _place_hold(deployment, besides_tpm=before)
    deployment.save(update_fields=["tpm"])
    locked.spec = {**locked.spec, "tpm": tpm}
    return _change(locked, actor, "endpoint.scaled", ["spec"], tpm=tpm)


@transaction.atomic
def endpoint_pause(*, endpoint: Endpoint, actor: str) -> Endpoint:
    """End the engines and the bill, keep the id and the settings; a repeat changes nothing.

    Problems: conflict (being deleted, a reservation, or one rides on it).
    """
    locked = _lock(endpoint)
    if locked.rung == Rung.RESERVED:
        sentence = "a reservation is kept by paying for it: lower its tpm, or delete it"
        raise Problem(CONFLICT, sentence, param="endpoint_id")
    if locked.paused_at is not None:
        return locked
    _check_riders(Deployment.objects.get(endpoint=locked), 0)
    locked.paused_at = database_now()
    return _change(locked, actor, "endpoint.paused", ["paused_at"])


@transaction.atomic
def endpoint_resume(*, endpoint: Endpoint, actor: str) -> Endpoint:
    """Run again; a repeat changes nothing.

    Problems: insufficient_balance, conflict (being deleted), invalid_parameter (a release that the catalogue
    forgot).
    """
    locked = _lock(endpoint)
    if locked.paused_at is None:
        return locked
    _release(locked.release)
    deployment = Deployment.objects.select_related("pool", "endpoint").get(endpoint=locked)
    if deployment.replicas:
        _place_hold(deployment)
    locked.paused_at = None
    return _change(locked, actor, "endpoint.resumed", ["paused_at"])


@transaction.atomic
def endpoint_delete(*, endpoint: Endpoint, actor: str) -> Endpoint:
    """Ask for the end: the bill ends now, the rest is undone step by step; a repeat changes nothing.

    Problem conflict where a reservation rides on it.
    """
    locked = Endpoint.objects.select_for_update().get(id=endpoint.id)
    if locked.deletion_requested_at is not None:
        return locked
    _check_riders(Deployment.objects.get(endpoint=locked), 0)
    locked.deletion_requested_at = database_now()
    return _change(locked, actor, "endpoint.deleted", ["deletion_requested_at"])


def hold_deployment(deployment: Deployment) -> None:
    """Reserve an hour of all replicas, in the caller's transaction. Problem INSUFFICIENT_BALANCE."""
    ports.get().hold_place(
        tenant_id=deployment.tenant_id,
        deployment_id=deployment.id,
        sku=deployment.sku,
        region=deployment.endpoint.region,
        accelerator_seconds=HOLD_S * deployment.accelerators * deployment.replicas,
    )


def hold_subject(deployment: Deployment) -> UUID:
    """Whose hold it is: a reservation's money is kept for its endpoint, all other for the deployment."""
    return deployment.endpoint_id if deployment.carrier_id else deployment.id


def _place_hold(deployment: Deployment, *, besides_tpm: int = 0) -> None:
    """Money for an hour ahead, or a day of what is reserved; the operator's shared engines need none."""
    if deployment.endpoint.rung == Rung.SHARED:
        return
    if deployment.carrier_id:
        ports.get().reserved_hold_place(
            tenant_id=deployment.tenant_id,
            endpoint_id=deployment.endpoint_id,
            sku=deployment.sku,
            region=deployment.endpoint.region,
            ktpm=(deployment.tpm - besides_tpm) // TPM_STEP,
        )
    else:
        hold_deployment(deployment)
    deployment.held = True
    deployment.save(update_fields=["held"])


def _name(text: str) -> str:
    """NFKC folds look-alikes of width and style; what is then not plain ASCII is refused: nothing poses."""
    folded = unicodedata.normalize("NFKC", text)
    if not 1 <= len(folded) <= MAX_NAME_LENGTH or not NAME_CHARS.issuperset(folded):
        raise Problem(
            INVALID_PARAMETER,
            f"name has 1 to {MAX_NAME_LENGTH} of the characters a-z, 0-9 and hyphen",
            param="name",
        )
    return folded


def _release(release_id: str) -> Release:
    release = catalogue().releases.get(release_id)
    if release is None or not release.servable:
        raise Problem(
            INVALID_PARAMETER,
            f"release {release_id!r} is not in the catalogue; list them with GET /api/v1/releases",
            param="release",
        )
    return release


def _rung(text: str, tenant_id: UUID) -> Rung:
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


def _check_rung(rung: Rung, *, tpm: int, is_shaped: bool) -> None:
    """Tokens a minute belong to reservations, the engines' shape to all others."""
    if rung is not Rung.RESERVED and tpm:
        raise Problem(INVALID_PARAMETER, "tpm is of rung reserved alone; leave it out", param="tpm")
    if rung is Rung.RESERVED and is_shaped:
        sentence = "a reservation rides on the operator's engines: leave out accelerator, replicas and paused"
        raise Problem(INVALID_PARAMETER, sentence, param="rung")


def _replicas(replicas: int) -> None:
    if not 0 <= replicas <= MAX_REPLICAS:
        raise Problem(INVALID_PARAMETER, f"replicas is from 0 to {MAX_REPLICAS}", param="replicas")


def _lock_quota(tenant_id: UUID) -> None:
    """One writer at a time counts a tenant's endpoints: released when the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('quota:' || %s, 0))", [str(tenant_id)])


def _check_endpoints(tenant_id: UUID) -> None:
    limit = quota_limit(tenant_id, "endpoints")
    used = Endpoint.objects.filter(tenant_id=tenant_id, archived_at__isnull=True).count()
    if used >= limit:
        raise Problem(
            QUOTA_EXCEEDED,
            f"{used} of {limit} endpoints are in use; delete one or ask for a higher quota",
            param="endpoints",
        )


def _check_accelerators(tenant_id: UUID, more: int) -> None:
    limit = quota_limit(tenant_id, "accelerators")
    live = Deployment.objects.filter(tenant_id=tenant_id, endpoint__archived_at__isnull=True)
    used = live.aggregate(total=Sum(F("replicas") * F("accelerators")))["total"] or 0
    if used + more > limit:
        raise Problem(
            QUOTA_EXCEEDED,
            f"{more} accelerators are asked for and {max(0, limit - used)} of {limit} are left; "
            "ask for fewer replicas, delete an endpoint or ask for a higher quota",
            param="replicas",
        )


def _berth(release: Release, region: str, replicas: int, accelerator: str | None) -> dict[str, Any]:
    """Columns of a deployment with engines of its own."""
    placement = _place(release, region, replicas, accelerator)
    pool, recipe = Pool.objects.get(region=region, name=placement.pool.name), placement.recipe  # type: ignore[union-attr]
    assert recipe is not None
    return {"pool": pool, "recipe": recipe.id, "replicas": replicas, "accelerators": recipe.cards}


def _ride(release: Release, region: str, tpm: int) -> dict[str, Any]:
    """Columns of a deployment that rides on the operator's shared one."""
    carrier = carrier_of(release.id, region)
    if carrier is None:
        raise Problem(
            NO_POOL_FITS,
            f"no shared engines of {release.id} run in region {region} to reserve from; choose dedicated",
            param="release",
        )
    _check_tpm(carrier, tpm)
    return {
        "pool": carrier.pool,
        "recipe": carrier.recipe,
        "replicas": 0,
        "accelerators": 0,
        "carrier": carrier,
        "tpm": tpm,
    }


def _check_tpm(carrier: Deployment, tpm: int, *, before: int = 0) -> None:
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


def _check_riders(deployment: Deployment, replicas: int) -> None:
    """Shared engines stay while reservations need them."""
    offer = offer_of(deployment, lock=True) if deployment.endpoint.rung == Rung.SHARED else None
    if offer is None or not offer.taken_tpm:
        return
    carried = offer.total_tpm // max(deployment.replicas, 1) * replicas
    if offer.taken_tpm > carried:
        raise Problem(
            CONFLICT,
            f"{offer.taken_tpm} tokens a minute are reserved here and {replicas} replicas carry {carried}; "
            "keep more replicas until the reservations have ended",
            param="replicas",
        )


def _place(release: Release, region: str, replicas: int, accelerator: str | None) -> Placement:
    placement = place(
        catalogue(),
        release,
        [pool_facts(pool) for pool in Pool.objects.all()],
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


def _check_pool(deployment: Deployment, replicas: int) -> None:
    needed = deployment.accelerators * replicas
    if needed > deployment.pool.capacity:
        raise Problem(
            NO_POOL_FITS,
            f"{replicas} replicas take {needed} accelerators and pool {deployment.pool.name} has "
            f"{deployment.pool.capacity}; ask for fewer replicas",
            param="replicas",
        )


def _lock(endpoint: Endpoint) -> Endpoint:
    locked = Endpoint.objects.select_for_update().get(id=endpoint.id)
    if locked.deletion_requested_at is not None:
        raise Problem(CONFLICT, "the endpoint is being deleted; create a new one", param="endpoint_id")
    return locked


def _change(locked: Endpoint, actor: str, action: str, fields: list[str], **detail: int) -> Endpoint:
    locked.generation += 1
    locked.save(update_fields=[*fields, "generation"])
    _announce(locked, actor, action, detail)
    return locked


def _announce(endpoint: Endpoint, actor: str, action: str, detail: Mapping[str, Any]) -> None:
    audit_write(
        actor=actor,
        tenant_id=endpoint.tenant_id,
        action=action,
        detail={"endpoint_id": str(endpoint.id), "name": endpoint.name, **detail},
    )
    transaction.on_commit(partial(hint, endpoint.id))
