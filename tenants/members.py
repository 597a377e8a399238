"""People of a tenant: invited by a link that is shown once, given a role, and removed; one owner stays."""

import secrets
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction

from kernel import keys
from kernel.clock import utcnow
from kernel.problems import CONFLICT, INVALID_PARAMETER, NOT_FOUND, Problem
from tenants.models import Invitation, Membership, Role
from tenants.services import audit_write, check_role, member_add

INVITATION_LASTS = timedelta(days=7)
MAX_NOTE_LENGTH = 80


@dataclass(frozen=True, slots=True)
class Invited:
    """What the holder of an invitation's link may know before they belong to the tenant."""

    invitation_id: UUID
    tenant_id: UUID
    tenant_name: str
    role: str


@transaction.atomic
def invitation_create(*, tenant_id: UUID, note: str, role: str, actor: str) -> tuple[Invitation, str]:
    """An invitation and the secret of its link, which is shown once and never stored.

    `note` says for whom it is. Problem INVALID_PARAMETER names the field.
    """
    note = " ".join(note.split())
    if not 1 <= len(note) <= MAX_NOTE_LENGTH or not note.isprintable():
        raise Problem(INVALID_PARAMETER, f"note has 1 to {MAX_NOTE_LENGTH} printable characters", param="note")
    check_role(role)
    secret = secrets.token_urlsafe(32)
    invitation = Invitation.objects.create(
        tenant_id=tenant_id, role=role, note=note, digest=_digest(secret), expires_at=utcnow() + INVITATION_LASTS
    )
    audit_write(actor=actor, tenant_id=tenant_id, action="member.invited", detail={"note": note, "role": role})
    return invitation, secret


def invitation_find(secret: str) -> Invited | None:
    """Who invites to what, for the holder of the link, before any tenant is known; None once it has expired."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM invitation_by_digest(%s)", [_digest(secret)])
        row = cursor.fetchone()
    return Invited(*row) if row else None


@transaction.atomic
def invitation_accept(*, invited: Invited, user: User) -> Membership:
    """The person joins, inside the tenant's scope; the invitation is used up.

    Problems: not_found (used or withdrawn meanwhile), conflict (a member already).
    """
    if not Invitation.objects.select_for_update().filter(id=invited.invitation_id).exists():
        raise Problem(NOT_FOUND, "this invitation was used or withdrawn; ask for a new one")
    if Membership.objects.filter(tenant_id=invited.tenant_id, user=user).exists():
        raise Problem(CONFLICT, "you are a member of this tenant already; an owner can change your role")
    Invitation.objects.filter(id=invited.invitation_id).delete()
    return member_add(tenant_id=invited.tenant_id, user=user, role=invited.role, actor=f"user:{user.pk}")


@transaction.atomic
def invitation_withdraw(*, tenant_id: UUID, invitation_id: UUID, actor: str) -> None:
    """Make a link worthless. Problem NOT_FOUND where it was used or withdrawn before."""
    deleted, _ = Invitation.objects.filter(tenant_id=tenant_id, id=invitation_id).delete()
    if not deleted:
        raise Problem(NOT_FOUND, "there is no such invitation")
    audit_write(actor=actor, tenant_id=tenant_id, action="member.uninvited", detail={"invitation": str(invitation_id)})


@transaction.atomic
def member_role_set(*, tenant_id: UUID, member_id: int, role: str, actor: str) -> Membership:
    """Another role for a member, from their next request on. Problems: not_found, conflict (the last owner)."""
    check_role(role)
    membership = _locked(tenant_id, member_id)
    if role != Role.OWNER:
        _keep_an_owner(membership)
    membership.role = role
    membership.save(update_fields=["role"])
    audit_write(
        actor=actor,
        tenant_id=tenant_id,
        action="member.role_set",
        detail={"user": membership.user_id, "role": role},
    )
    return membership


@transaction.atomic
def member_remove(*, tenant_id: UUID, member_id: int, actor: str) -> None:
    """The person leaves the tenant; their account and the keys stay. Problems: not_found, conflict (last owner)."""
    membership = _locked(tenant_id, member_id)
    _keep_an_owner(membership)
    membership.delete()
    audit_write(actor=actor, tenant_id=tenant_id, action="member.removed", detail={"user": membership.user_id})


def _locked(tenant_id: UUID, member_id: int) -> Membership:
    """The member, while nobody else changes this tenant's members: two owners cannot demote each other at once."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('members:' || %s, 0))", [str(tenant_id)])
    membership = Membership.objects.filter(tenant_id=tenant_id, id=member_id).first()
    if membership is None:
        raise Problem(NOT_FOUND, "there is no such member")
    return membership


def _keep_an_owner(membership: Membership) -> None:
    others = Membership.objects.filter(tenant_id=membership.tenant_id, role=Role.OWNER).exclude(id=membership.id)
    if membership.role == Role.OWNER and not others.exists():
        raise Problem(CONFLICT, "this is the last owner; make another member an owner first", param="role")


def _digest(secret: str) -> bytes:
    return keys.digest(settings.KEY_PEPPER, secret)
