"""Writes of the tenants room."""

import json
import unicodedata
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import F

from kernel import keys
from kernel.clock import utcnow
from kernel.money import MINOR_DIGITS
from kernel.pricing import canonical
from kernel.problems import CONFLICT, INVALID_PARAMETER, NOT_FOUND, Problem
from tenants.models import ApiKey, EndpointCap, Membership, Quota, Role, Scope, Standing, Tenant, TenantKind

DEFAULT_QUOTAS = {"endpoints": 20, "accelerators": 16}
MAX_NAME_LENGTH = 80
LOOK_ALIKE = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU"})
ROTATION_OVERLAP = timedelta(hours=24)
MAX_CAP_PICO = 2**62  # what Redis can still add to
# Limits of a key: the least and the most; 0 is no limit where it is allowed.
KEY_LIMITS = {
    "rpm": (1, 1_000_000),
    "concurrency": (1, 10_000),
    "tpm_cached": (0, 2_000_000_000),
    "tpm_uncached": (0, 2_000_000_000),
    "tpm_generated": (0, 2_000_000_000),
    "spend_cap_pico": (0, MAX_CAP_PICO),
    "user_cap_pico": (0, MAX_CAP_PICO),
}


def audit_write(*, actor: str, tenant_id: UUID | None, action: str, detail: dict[str, Any]) -> None:
    """Append one row to the audit chain, in the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT audit_append(%s, %s::uuid, %s, %s::jsonb)",
            [actor, tenant_id, action, canonical(detail).decode()],
        )


@transaction.atomic
def tenant_create(*, name: str, currency: str, kind: str = TenantKind.CUSTOMER, actor: str = "operator") -> Tenant:
    """A tenant with its default quotas. Problem INVALID_PARAMETER for a name or a currency that we cannot bill."""
    if currency not in MINOR_DIGITS:
        raise Problem(INVALID_PARAMETER, f"currency is one of {', '.join(MINOR_DIGITS)}", param="currency")
    tenant = Tenant.objects.create(name=_name(name), currency=currency, kind=kind)
    Quota.objects.bulk_create(
        Quota(tenant=tenant, resource=resource, limit=limit) for resource, limit in DEFAULT_QUOTAS.items()
    )
    audit_write(actor=actor, tenant_id=tenant.id, action="tenant.created", detail={"name": tenant.name})
    return tenant


def check_role(role: str) -> None:
    """Problem INVALID_PARAMETER for a word that is no role."""
    if role not in Role.values:
        raise Problem(INVALID_PARAMETER, f"role is one of {', '.join(Role.values)}", param="role")


@transaction.atomic
def member_add(*, tenant_id: UUID, user: User, role: str, actor: str = "operator") -> Membership:
    """Give a user one role in a tenant; a repeat changes the role."""
    check_role(role)
    membership, _ = Membership.objects.update_or_create(tenant_id=tenant_id, user=user, defaults={"role": role})
    audit_write(actor=actor, tenant_id=tenant_id, action="member.added", detail={"user": user.pk, "role": role})
    return membership


@transaction.atomic
def quota_set(*, tenant_id: UUID, resource: str, limit: int, actor: str = "operator") -> None:
    """Change how much a tenant may hold at once."""
    if resource not in DEFAULT_QUOTAS:
        raise Problem(INVALID_PARAMETER, f"resource is one of {', '.join(DEFAULT_QUOTAS)}", param="resource")
    Quota.objects.update_or_create(tenant_id=tenant_id, resource=resource, defaults={"limit": limit})
    audit_write(actor=actor, tenant_id=tenant_id, action="quota.set", detail={"resource": resource, "limit": limit})


def quota_lock(*, tenant_id: UUID) -> dict[str, int]:
    """Until the caller's transaction ends, nobody else counts what the tenant has. Its limits by resource."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('quota:' || %s, 0)), "
            '(SELECT jsonb_object_agg(resource, "limit") FROM quota WHERE tenant_id = %s)',
            [str(tenant_id), tenant_id],
        )
        _, limits = cursor.fetchone()
    return dict(json.loads(limits or "{}"))


@transaction.atomic
def standing_set(*, tenant_id: UUID, standing: str, actor: str, reason: str = "") -> None:
    """Billing's verdict on a tenant, or a person's with a reason; the projection carries it to the gateways."""
    if standing not in Standing.values:
        raise Problem(INVALID_PARAMETER, f"standing is one of {', '.join(Standing.values)}", param="standing")
    if not Tenant.objects.filter(id=tenant_id).update(standing=standing):
        raise Problem(NOT_FOUND, f"there is no tenant {tenant_id}")
    keys_renew(tenant_id=tenant_id)
    audit_write(
        actor=actor, tenant_id=tenant_id, action=f"tenant.{standing}", detail={"reason": reason} if reason else {}
    )


def keys_renew(*, tenant_id: UUID) -> None:
    """Raise the version of a tenant's keys: gateways keep a key's record until its version changes."""
    ApiKey.objects.filter(tenant_id=tenant_id).update(version=F("version") + 1)


@transaction.atomic
def api_key_create(
    *,
    tenant_id: UUID,
    name: str,
    actor: str,
    scopes: list[str] | None = None,
    allowed_models: list[str] | None = None,
    rpm: int = 600,
    concurrency: int = 64,
    expires_at: datetime | None = None,
    mode: str = "live",
) -> tuple[ApiKey, str]:
    """A new key and its text, which is shown once and never stored.

    Problems name the field: unknown scope, rpm or concurrency out of range, expiry in the past.
    """
    scopes = scopes if scopes is not None else [Scope.INFERENCE]
    if not scopes or set(scopes) - set(Scope.values):
        raise Problem(INVALID_PARAMETER, f"scopes are {' and '.join(Scope.values)}, at least one", param="scopes")
    _check_limits({"rpm": rpm, "concurrency": concurrency})
    if expires_at is not None and expires_at <= utcnow():
        raise Problem(INVALID_PARAMETER, "expires_at lies in the past; leave it out for no expiry", param="expires_at")
    generated = keys.generate(mode)
    key = ApiKey.objects.create(
        tenant_id=tenant_id,
        public_id=generated.public_id,
        secret_hmac=keys.digest(settings.KEY_PEPPER, generated.text),
        name=_name(name),
        scopes=scopes,
        allowed_models=allowed_models,
        rpm=rpm,
        concurrency=concurrency,
        expires_at=expires_at,
    )
    audit_write(actor=actor, tenant_id=tenant_id, action="api_key.created", detail={"public_id": key.public_id})
    return key, generated.text


@transaction.atomic
def api_key_rotate(*, key: ApiKey, actor: str) -> tuple[ApiKey, ApiKey, str]:
    """A second key with the first one's name, scopes and limits: (old, new, the new one's text, shown once).

    The old one goes on for ROTATION_OVERLAP, or to its own expiry. Problem CONFLICT where it is revoked or expired.
    """
    old = ApiKey.objects.select_for_update().get(id=key.id)
    now = utcnow()
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Problem(CONFLICT, f"the API key {old.public_id} works no more; create a new one")
    generated = keys.generate()
    new = ApiKey.objects.create(
        tenant_id=old.tenant_id,
        public_id=generated.public_id,
        secret_hmac=keys.digest(settings.KEY_PEPPER, generated.text),
        name=old.name,
        scopes=old.scopes,
        allowed_models=old.allowed_models,
        expires_at=old.expires_at,
        rotated_from=old.id,
        **{limit: getattr(old, limit) for limit in KEY_LIMITS},
    )
    overlap_end = now + ROTATION_OVERLAP
    old.expires_at = overlap_end if old.expires_at is None else min(old.expires_at, overlap_end)
    old.version += 1
    old.save(update_fields=["expires_at", "version"])
    detail = {"public_id": old.public_id, "successor": new.public_id}
    audit_write(actor=actor, tenant_id=old.tenant_id, action="api_key.rotated", detail=detail)
    return old, new, generated.text


@transaction.atomic
def api_key_limit(*, key: ApiKey, limits: Mapping[str, int], actor: str) -> ApiKey:
    """Change some of a key's limits, named as in KEY_LIMITS. They hold once the projection carries the new version.

    Problem INVALID_PARAMETER names a limit that is unknown or out of range.
    """
    _check_limits(limits)
    locked = ApiKey.objects.select_for_update().get(id=key.id)
    for name, value in limits.items():
        setattr(locked, name, value)
    locked.version += 1
    locked.save(update_fields=[*limits, "version"])
    detail = {"public_id": locked.public_id, **{name: str(value) for name, value in limits.items()}}
    audit_write(actor=actor, tenant_id=locked.tenant_id, action="api_key.limited", detail=detail)
    return locked


@transaction.atomic
def endpoint_cap_set(*, tenant_id: UUID, endpoint_id: str, cap_pico: int, actor: str) -> list[ApiKey]:
    """Cap what a tenant spends at one endpoint in a month; 0 takes the cap away. Returns the keys that carry it."""
    if not 0 <= cap_pico <= MAX_CAP_PICO:
        raise Problem(INVALID_PARAMETER, "cap is an amount, or 0 for no cap", param="cap")
    caps = EndpointCap.objects.filter(tenant_id=tenant_id, endpoint_id=endpoint_id)
    if cap_pico:
        caps.update_or_create(tenant_id=tenant_id, endpoint_id=endpoint_id, defaults={"cap_pico": cap_pico})
    else:
        caps.delete()
    keys_ = ApiKey.objects.filter(tenant_id=tenant_id)
    keys_.update(version=F("version") + 1)
    detail = {"endpoint_id": endpoint_id, "cap_pico": str(cap_pico)}
    audit_write(actor=actor, tenant_id=tenant_id, action="endpoint.capped", detail=detail)
    return list(keys_.select_related("tenant"))


@transaction.atomic
def api_key_revoke(*, key: ApiKey, actor: str) -> ApiKey:
    """Revoke a key; a repeat changes nothing. It holds once the projection carries the new version."""
    locked = ApiKey.objects.select_for_update().get(id=key.id)
    if locked.revoked_at is None:
        locked.revoked_at = utcnow()
        locked.version += 1
        locked.save(update_fields=["revoked_at", "version"])
        audit_write(
            actor=actor,
            tenant_id=locked.tenant_id,
            action="api_key.revoked",
            detail={"public_id": locked.public_id},
        )
    return locked


def _check_limits(limits: Mapping[str, int]) -> None:
    for name, value in limits.items():
        if name not in KEY_LIMITS:
            raise Problem(INVALID_PARAMETER, f"{name[:40]} is not a limit of a key", param=name[:40])
        least, most = KEY_LIMITS[name]
        if not least <= value <= most:
            raise Problem(INVALID_PARAMETER, f"{name} is from {least} to {most}", param=name)


def _name(text: str) -> str:
    """In one spelling; no unseen character, and no letters of two alphabets that pass for one another."""
    cleaned = " ".join(unicodedata.normalize("NFKC", text).split())
    if not 1 <= len(cleaned) <= MAX_NAME_LENGTH or not cleaned.isprintable():
        raise Problem(INVALID_PARAMETER, f"name has 1 to {MAX_NAME_LENGTH} printable characters", param="name")
    alphabets = {unicodedata.name(char, "").split(" ")[0] for char in cleaned if char.isalpha()}
    if len(alphabets & LOOK_ALIKE) > 1:
        raise Problem(INVALID_PARAMETER, "name mixes letters that look alike; write it in one alphabet", param="name")
    return cleaned
