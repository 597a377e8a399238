"""Writes of customers' intent. Status is the reconciler's alone."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction

from inference import ports
from inference.clock import database_now
from inference.core import reserved
from inference.core.catalogue import TPM_STEP
from inference.core.words import Finalizer, Rung, Visibility
from inference.hints import hint
from inference.models import Deployment, Endpoint
from inference.refusals import (
    berth_of,
    check_accelerators,
    check_endpoints,
    check_name,
    check_pool,
    check_recipe,
    check_replicas,
    check_riders,
    check_rung,
    check_tpm,
    name_of,
    release_of,
    ride_of,
    rung_of,
    used_lock,
)
from inference.selectors import sku_of
from kernel.problems import CONFLICT, INVALID_PARAMETER, Problem
from tenants.services import audit_write

HOLD_S = 3600


@transaction.atomic(savepoint=False)
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
) -> tuple[Endpoint, Deployment]:
    """A new endpoint and its deployment, placed and paid for; it runs once the reconciler has been there.

    `tpm` is what rung reserved keeps of the operator's shared engines, whose accelerators and replicas are not
    the tenant's to choose.

    Problems: invalid_parameter (names the field), conflict (name taken), forbidden (shared is the
    operator's), quota_exceeded, no_pool_fits (every pool's reason, or what is left to reserve),
    insufficient_balance. A pool that is full for now is no problem: the endpoint waits. A problem ends the caller's
    transaction too: who goes on in it calls this within a savepoint.
    """
    name, known = name_of(name), release_of(release)
    bought = rung_of(rung, tenant_id)
    check_replicas(replicas)
    check_rung(bought, tpm=tpm, is_shaped=accelerator is not None or replicas != 1 or paused)
    used = used_lock(tenant_id, name)
    check_name(used, name)
    check_endpoints(used)
    if bought is Rung.RESERVED:
        berth = ride_of(known, region, tpm)
    else:
        berth = berth_of(known, region, replicas, accelerator)
        check_accelerators(used, berth["accelerators"] * replicas)
    endpoint = Endpoint(
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
    deployment = Deployment(tenant_id=tenant_id, endpoint=endpoint, sku=sku, **berth)
    if replicas and not paused:
        _place_hold(deployment)
    endpoint.save()
    deployment.save()
    _announce(endpoint, actor, "endpoint.created", {"release": known.id, "rung": bought, **endpoint.spec})
    return endpoint, deployment


@transaction.atomic
def endpoint_scale(*, endpoint: Endpoint, actor: str, replicas: int) -> Endpoint:
    """Change how many replicas run; 0 keeps the URL and stops the bill.

    Problems: invalid_parameter (also a release that the catalogue forgot), conflict (being deleted),
    quota_exceeded, no_pool_fits (more than the pool has in all), insufficient_balance.
    """
    check_replicas(replicas)
    locked = _lock(endpoint)
    if locked.rung == Rung.RESERVED:
        raise Problem(INVALID_PARAMETER, "a reservation has no replicas of its own: change its tpm", param="replicas")
    deployment = Deployment.objects.select_related("pool", "endpoint").get(endpoint=locked)
    if deployment.replicas == replicas:
        return locked
    check_riders(deployment, replicas)
    more = deployment.accelerators * (replicas - deployment.replicas)
    if more > 0:
        release_of(locked.release)
        check_accelerators(used_lock(locked.tenant_id), more)
        check_pool(deployment, replicas)
    deployment.replicas = replicas
    if more > 0 and locked.paused_at is None:
        _place_hold(deployment)
    deployment.save(update_fields=["replicas", "held"])
    locked.spec = {**locked.spec, "replicas": replicas}
    return _change(locked, actor, "endpoint.scaled", ["spec"], replicas=replicas)


@transaction.atomic
def endpoint_update(*, endpoint: Endpoint, actor: str, recipe: str) -> Endpoint:
    """Run the endpoint by another recipe of its release, on its pool, replica after replica.

    Where an accelerator is free, a new replica serves before an old one ends, and one that never does
    leaves the old ones serving. Problems: invalid_parameter, conflict (being deleted, or reservations need
    what the recipe does not carry), no_pool_fits.
    """
    locked = _lock(endpoint)
    deployment = Deployment.objects.select_related("pool", "endpoint").get(endpoint=locked)
    if deployment.carrier_id:
        raise Problem(INVALID_PARAMETER, "a reservation has no engines of its own: change its tpm", param="recipe")
    if deployment.recipe == recipe:
        return locked
    check_recipe(deployment, recipe)
    deployment.recipe = recipe
    check_riders(deployment, deployment.replicas)
    deployment.save(update_fields=["recipe"])
    locked.spec = {**locked.spec, "recipe": recipe}
    return _change(locked, actor, "endpoint.updated", ["spec"], recipe=recipe)


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
    check_tpm(deployment.carrier, tpm, before=before)
    deployment.tpm = tpm
    if tpm > before:
        _place_hold(deployment, besides_tpm=before)
    deployment.save(update_fields=["tpm", "held"])
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
    check_riders(Deployment.objects.get(endpoint=locked), 0)
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
    release_of(locked.release)
    deployment = Deployment.objects.select_related("pool", "endpoint").get(endpoint=locked)
    if deployment.replicas:
        _place_hold(deployment)
        deployment.save(update_fields=["held"])
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
    check_riders(Deployment.objects.get(endpoint=locked), 0)
    locked.deletion_requested_at = database_now()
    return _change(locked, actor, "endpoint.deleted", ["deletion_requested_at"])


def hold_deployment(deployment: Deployment) -> None:
    """Reserve an hour of all replicas, in the caller's transaction. Problem INSUFFICIENT_BALANCE."""
    ports.get().hold_place(
        tenant_id=deployment.tenant_id,
        deployment_id=deployment.id,
        sku=deployment.sku,
        region=deployment.endpoint.region,
        pool=str(deployment.pool),
        accelerator_seconds=HOLD_S * deployment.accelerators * deployment.replicas,
    )


def hold_subject(deployment: Deployment) -> UUID:
    """Whose hold it is: a reservation's money is kept for its endpoint, all other for the deployment."""
    return deployment.endpoint_id if deployment.carrier_id else deployment.id


def _place_hold(deployment: Deployment, *, besides_tpm: int = 0) -> None:
    """Money for an hour ahead, or a day of what is reserved; the operator's shared engines need none.

    The row says so then, and the caller saves it.
    """
    if deployment.endpoint.rung == Rung.SHARED:
        return
    if deployment.carrier_id:
        ports.get().reserved_hold_place(
            tenant_id=deployment.tenant_id,
            endpoint_id=deployment.endpoint_id,
            sku=deployment.sku,
            region=deployment.endpoint.region,
            pool=str(deployment.pool),
            ktpm=(deployment.tpm - besides_tpm) // TPM_STEP,
        )
    else:
        hold_deployment(deployment)
    deployment.held = True


def _lock(endpoint: Endpoint) -> Endpoint:
    locked = Endpoint.objects.select_for_update().get(id=endpoint.id)
    if locked.deletion_requested_at is not None:
        raise Problem(CONFLICT, "the endpoint is being deleted; create a new one", param="endpoint_id")
    return locked


def _change(locked: Endpoint, actor: str, action: str, fields: list[str], **detail: int | str) -> Endpoint:
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
    transaction.on_commit(hint)
