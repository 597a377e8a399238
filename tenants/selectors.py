"""Reads of the tenants room."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db import connection
from django.db.models import QuerySet

from kernel.clock import utcnow
from tenants.models import ApiKey, AuditLog, EndpointCap, Invitation, Membership, Quota, Tenant

AUDIT_SHOWN = 50


@dataclass(frozen=True, slots=True)
class KeyCredential:
    """What authentication needs of a key before any tenant is known."""

    key_id: UUID
    tenant_id: UUID
    secret_hmac: bytes
    scopes: list[str]
    standing: str
    expires_at: datetime | None
    revoked_at: datetime | None


def key_credential(public_id: str) -> KeyCredential | None:
    """The credential behind a public id, through a function that reveals one row at a time."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM api_key_credential(%s)", [public_id])
        row = cursor.fetchone()
    if row is None:
        return None
    key_id, tenant_id, secret_hmac, scopes, standing, expires_at, revoked_at = row
    return KeyCredential(key_id, tenant_id, bytes(secret_hmac), json.loads(scopes), standing, expires_at, revoked_at)


def api_key_list_for(tenant_id: UUID) -> QuerySet[ApiKey]:
    """A tenant's keys, newest first; revoked ones stay visible."""
    return ApiKey.objects.filter(tenant_id=tenant_id).order_by("-created_at")


def membership_list_for(user_id: int | None) -> list[Membership]:
    """A person's memberships with their tenants, by tenant name."""
    return list(Membership.objects.filter(user__in=[user_id]).select_related("tenant").order_by("tenant__name", "id"))


def endpoint_cap_get(*, tenant_id: UUID, endpoint_id: str) -> int:
    """The most that the tenant spends at an endpoint in a month, pico-units; 0 is no cap."""
    caps = EndpointCap.objects.filter(tenant_id=tenant_id, endpoint_id=endpoint_id)
    return caps.values_list("cap_pico", flat=True).first() or 0


def quota_limits(tenant_ids: Collection[UUID], resource: str) -> dict[UUID, int]:
    """The limits of one resource by tenant (system role); one where none was ever set is left out."""
    rows = Quota.objects.filter(tenant_id__in=tenant_ids, resource=resource)
    return dict(rows.values_list("tenant_id", "limit"))


def tenant_get(tenant_id: UUID) -> Tenant:
    """The tenant; Tenant.DoesNotExist outside its scope."""
    return Tenant.objects.get(id=tenant_id)


def api_key_line(key_id: UUID) -> list[UUID]:
    """A key and those that it succeeds, one after the other, the newest first."""
    line = [key_id]
    while before := ApiKey.objects.filter(id=line[-1]).values_list("rotated_from", flat=True).first():
        line.append(before)
    return line


def member_list_for(tenant_id: UUID) -> list[Membership]:
    """A tenant's members with their `user`, by name."""
    return list(Membership.objects.filter(tenant_id=tenant_id).select_related("user").order_by("user__username"))


def invitation_list_for(tenant_id: UUID) -> list[Invitation]:
    """Invitations that can still be accepted, newest first."""
    waiting = Invitation.objects.filter(tenant_id=tenant_id, expires_at__gt=utcnow())
    return list(waiting.order_by("-created_at"))


def audit_list_for(tenant_id: UUID) -> list[AuditLog]:
    """What was done in a tenant lately, newest first."""
    return list(AuditLog.objects.filter(tenant_id=tenant_id).order_by("-seq")[:AUDIT_SHOWN])
