"""Billable facts of replicas and reservations, to the outbox that billing reads; no price is known here."""

from datetime import datetime
from uuid import UUID

from inference.core.replicas import ALIVE, slot
from inference.core.words import Rung
from inference.models import Deployment
from tenants.outbox import publish

TOPIC = "inference.billable"
RESERVED_TOPIC = "inference.reserved"


def publish_fact(*, deployment: Deployment, pod_uid: UUID, event: str, at: datetime, from_at: datetime) -> None:
    """Write one fact in the caller's transaction; shared engines are the operator's own and bill nothing.

    A pod has one span per `from_at`, the instant of its fact "from"; "alive" and "to" name theirs.
    """
    endpoint = deployment.endpoint
    if endpoint.rung == Rung.SHARED:
        return
    dedupe_key = f"billable:{pod_uid}:{from_at.isoformat()}:{event}"
    publish(
        topic=TOPIC,
        dedupe_key=f"{dedupe_key}:{slot(at)}" if event == ALIVE else dedupe_key,
        payload={
            "deployment_id": str(deployment.id),
            "endpoint_id": str(endpoint.id),
            "tenant_id": str(deployment.tenant_id),
            "pod_uid": str(pod_uid),
            "sku": deployment.sku,
            "region": endpoint.region,
            "pool": str(deployment.pool),
            "accelerator": deployment.pool.accelerator,
            "accelerator_count": deployment.accelerators,
            "event": event,
            "from_at": from_at.isoformat(),
            "at": at.isoformat(),
        },
    )


def publish_reserved(*, deployment: Deployment, event: str, ktpm: int, at: datetime) -> None:
    """Write in the caller's transaction that a reservation of `ktpm` begins or ends."""
    endpoint = deployment.endpoint
    publish(
        topic=RESERVED_TOPIC,
        dedupe_key=f"reserved:{endpoint.id}:{event}:{at.isoformat()}",
        payload={
            "endpoint_id": str(endpoint.id),
            "tenant_id": str(deployment.tenant_id),
            "sku": deployment.sku,
            "region": endpoint.region,
            "pool": str(deployment.pool),
            "ktpm": ktpm,
            "event": event,
            "at": at.isoformat(),
        },
    )
