"""The usage event: one immutable fact, written by the gateway or by inference, rated by billing."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from kernel.pricing import canonical

TOKENS, ACCEL, RESERVED, REBATE = "tokens", "accel", "reserved", "rebate"
ENGINE_FINAL, ENGINE_PARTIAL, ESTIMATED, CORRECTION = (
    "engine_final",
    "engine_partial",
    "estimated",
    "correction",
)


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """Instants are UTC; counts map a meter to a non-negative quantity; `sheet` is the sheet's SHA-256.

    `subject_id` is the request (kind tokens), the deployment (accel), the endpoint (reserved) or the month of one
    SKU (rebate); `finish` says how it
    ended (`stop`, `length`, `tool_calls`, `abort_client`, `error_engine`, …); `waste` counts tokens
    that were read from the engine and not delivered: booked, never billed. `end_user` is the gateways' digest of
    the client's name of its end user, "" where it gave none.
    """

    event_id: UUID
    source: str
    tenant_id: UUID
    subject_id: UUID
    kind: str
    sku: str
    region: str
    currency: str
    started_at: datetime
    ended_at: datetime
    counts: Mapping[str, int]
    sheet: bytes
    quoted_pico: int
    provenance: str
    finish: str
    endpoint_id: str = ""
    deployment_id: str = ""
    api_key_id: UUID | None = None
    attempt: int = 1
    pod_uid: UUID | None = None
    accelerator: str | None = None
    accelerator_count: int | None = None
    engine_usage: Mapping[str, Any] | None = None
    waste: int = 0
    purse: str | None = None
    generation: int | None = None
    reserved_pico: int = 0
    end_user: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ids and hashes as text, money as decimal strings."""
        return {
            "event_id": str(self.event_id),
            "source": self.source,
            "tenant_id": str(self.tenant_id),
            "subject_id": str(self.subject_id),
            "kind": self.kind,
            "sku": self.sku,
            "region": self.region,
            "currency": self.currency,
            "started_at": self.started_at.isoformat(),
            "ended_at": self.ended_at.isoformat(),
            "counts": dict(self.counts),
            "sheet": self.sheet.hex(),
            "quoted_pico": str(self.quoted_pico),
            "provenance": self.provenance,
            "finish": self.finish,
            "endpoint_id": self.endpoint_id,
            "deployment_id": self.deployment_id,
            "api_key_id": str(self.api_key_id) if self.api_key_id else None,
            "attempt": self.attempt,
            "pod_uid": str(self.pod_uid) if self.pod_uid else None,
            "accelerator": self.accelerator,
            "accelerator_count": self.accelerator_count,
            "engine_usage": dict(self.engine_usage) if self.engine_usage is not None else None,
            "waste": self.waste,
            "purse": self.purse,
            "generation": self.generation,
            "reserved_pico": str(self.reserved_pico),
            **({"end_user": self.end_user} if self.end_user else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "UsageEvent":
        """The event that `to_json` wrote. KeyError or ValueError where a field is absent or malformed."""
        return cls(
            event_id=UUID(value["event_id"]),
            source=value["source"],
            tenant_id=UUID(value["tenant_id"]),
            subject_id=UUID(value["subject_id"]),
            kind=value["kind"],
            sku=value["sku"],
            region=value["region"],
            currency=value["currency"],
            started_at=datetime.fromisoformat(value["started_at"]),
            ended_at=datetime.fromisoformat(value["ended_at"]),
            counts={name: int(count) for name, count in value["counts"].items()},
            sheet=bytes.fromhex(value["sheet"]),
            quoted_pico=int(value["quoted_pico"]),
            provenance=value["provenance"],
            finish=value["finish"],
            endpoint_id=value["endpoint_id"],
            deployment_id=value["deployment_id"],
            api_key_id=UUID(value["api_key_id"]) if value["api_key_id"] else None,
            attempt=value["attempt"],
            pod_uid=UUID(value["pod_uid"]) if value["pod_uid"] else None,
            accelerator=value["accelerator"],
            accelerator_count=value["accelerator_count"],
            engine_usage=value["engine_usage"],
            waste=value["waste"],
            purse=value["purse"],
            generation=value["generation"],
            reserved_pico=int(value["reserved_pico"]),
            end_user=value.get("end_user", ""),
        )

    def payload_sha256(self) -> bytes:
        """Names the content: the same id with another hash is a contradiction, not a repeat."""
        return hashlib.sha256(canonical(self.to_json())).digest()
