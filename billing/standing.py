"""Time that nobody pays: what lacks money too long suspends its tenant, and a deposit that covers it brings it back."""

from collections import defaultdict
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Sum, TextField, Value
from django.db.models.functions import Cast, Concat, Greatest

from billing.models import AccountKind, Hold, LedgerEntry, Shortfall
from tenants.models import Standing
from tenants.services import standing_set

# So long may time go on whose money ahead is missing.
GRACE = timedelta(minutes=15)
ACTOR = "billing"


def shortfall_note(*, tenant_id: UUID, deployment_id: UUID, missing_pico: int, now: datetime) -> None:
    """Keep the most that a deployment's time ahead lacks, and since when; 0 ends what has suspended nobody."""
    known = Shortfall.objects.filter(deployment_id=deployment_id)
    if not missing_pico:
        known.filter(suspended=False).delete()
    elif not known.update(missing_pico=Greatest(F("missing_pico"), missing_pico)):
        Shortfall.objects.create(
            deployment_id=deployment_id, tenant_id=tenant_id, missing_pico=missing_pico, since_at=now
        )


@transaction.atomic
def standings_update(*, now: datetime) -> None:
    """Suspend tenants whose time could not be paid for longer than the grace; let back those who paid in since.

    Shortfalls of what runs no more, and of tenants whom a person let back, are forgotten.
    """
    tenants: dict[UUID, list[Shortfall]] = defaultdict(list)
    for row in _lasting():
        tenants[row.tenant_id].append(row)
    for tenant_id, rows in tenants.items():
        known, suspended = Shortfall.objects.filter(tenant_id=tenant_id), any(row.suspended for row in rows)
        if _paid_in(tenant_id, min(row.recorded_at for row in rows)) >= sum(row.missing_pico for row in rows):
            if suspended:
                standing_set(tenant_id=tenant_id, standing=Standing.ACTIVE, actor=ACTOR)
            known.delete()
        elif not suspended and min(row.since_at for row in rows) + GRACE < now:
            standing_set(tenant_id=tenant_id, standing=Standing.SUSPENDED, actor=ACTOR)
            known.update(suspended=True)


def _lasting() -> list[Shortfall]:
    """Locked shortfalls that still mean something; the others are deleted."""
    subject = Concat(Value("deployment:"), Cast(OuterRef("deployment_id"), TextField()))
    running = Exists(Hold.objects.filter(subject=subject, sealed_at=None))
    active = Shortfall.objects.filter(tenant__standing=Standing.ACTIVE)
    active.filter(suspended=True).delete()
    active.exclude(running).delete()
    return list(Shortfall.objects.select_for_update().order_by("deployment_id"))


def _paid_in(tenant_id: UUID, since: datetime) -> int:
    """Pico-units of money that came in since then, less what went back; what we gave or wrote off is none."""
    entries = LedgerEntry.objects.filter(
        tx__tenant_id=tenant_id,
        tx__recorded_at__gte=since,
        account__tenant=None,
        account__kind=AccountKind.CASH,
    )
    return -int(entries.aggregate(total=Sum("amount", default=0))["total"])
