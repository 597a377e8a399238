"""The outbox: facts from one room to another, at least once, in order per topic."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db.models import Q

from kernel.clock import utcnow
from tenants.models import Outbox


def publish(*, topic: str, dedupe_key: str, payload: dict[str, Any]) -> None:
    """Write a fact in the caller's transaction; a repeat of its key is no second fact."""
    Outbox.objects.bulk_create([Outbox(topic=topic, dedupe_key=dedupe_key, payload=payload)], ignore_conflicts=True)


def take(*, topic: str, limit: int = 500) -> list[Outbox]:
    """The oldest unpublished facts, locked until the caller's transaction ends."""
    return list(
        Outbox.objects.select_for_update(skip_locked=True)
        .filter(Q(topic=topic), published_at__isnull=True)
        .order_by("id")[:limit]
    )


def expire(*, topics: Sequence[str], before: datetime) -> int:
    """Forget facts of these topics that took effect before then; how many. None that waits is lost."""
    deleted, _ = Outbox.objects.filter(topic__in=topics, published_at__lt=before).delete()
    return deleted


def mark(rows: Sequence[Outbox]) -> None:
    """The facts took effect in this transaction."""
    Outbox.objects.filter(id__in=[row.id for row in rows]).update(published_at=utcnow())
