"""Idempotency-Key: a repeated POST answers what the first one answered, and does nothing again.

The lock is an advisory one of the request's transaction: a crash frees it, and the answer is stored
in the transaction that made it true.
"""

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.db import connection
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.api.authentication import principal
from controlplane.middleware import Principal
from kernel.clock import utcnow
from kernel.pricing import canonical
from kernel.problems import (
    IDEMPOTENCY_IN_PROGRESS,
    IDEMPOTENCY_KEY_MISSING,
    IDEMPOTENCY_MISMATCH,
    INVALID_PARAMETER,
    Problem,
)
from tenants.models import Idempotency

KEPT = timedelta(hours=24)
MIN_LENGTH, MAX_LENGTH = 16, 255


def once(request: Request, act: Callable[[], Response], *, shown_once: str | None = None) -> Response:
    """Run `act` for a new key, replay its stored answer for a known one.

    `shown_once` names a field that is answered once and stored as null.

    Problems: 400 missing or too short, 409 still running, 422 the same key with another body.
    """
    key = request.headers.get("Idempotency-Key", "")
    if not key:
        raise Problem(
            IDEMPOTENCY_KEY_MISSING,
            "send Idempotency-Key with a fresh random value, such as a UUID; repeat it when you retry",
            param="Idempotency-Key",
        )
    if not MIN_LENGTH <= len(key) <= MAX_LENGTH:
        raise Problem(
            INVALID_PARAMETER,
            f"Idempotency-Key has {MIN_LENGTH} to {MAX_LENGTH} characters",
            param="Idempotency-Key",
        )
    who = principal(request)
    route = f"{request.method} {request.path}"
    fingerprint = hashlib.sha256(route.encode() + b"\n" + canonical(request.data)).digest()
    _lock(f"{who.tenant_id}|{who.name}|{key}")
    known = _known(who, key)
    if known is not None:
        return _replay(*known, fingerprint)
    response = act()
    _store(who, key, route, fingerprint, response, shown_once)
    return response


def expire() -> None:
    """Forget answers that are replayed no more."""
    Idempotency.objects.filter(expires_at__lt=utcnow()).delete()


def _lock(name: str) -> None:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [number])
        if not cursor.fetchone()[0]:
            raise Problem(IDEMPOTENCY_IN_PROGRESS, "a request with this key still runs; try again", retry_after_s=1)


def _known(who: Principal, key: str) -> tuple[bytes, int, Any] | None:
    """The fingerprint, status and body of a request that was answered under this key."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT fingerprint, status, body FROM idempotency "
            "WHERE tenant_id = %s AND principal = %s AND key = %s AND expires_at > %s",
            [who.tenant_id, who.name, key, utcnow()],
        )
        row = cursor.fetchone()
    return None if row is None else (bytes(row[0]), row[1], json.loads(row[2]))


def _replay(known: bytes, status: int, body: Any, fingerprint: bytes) -> Response:
    if known != fingerprint:
        raise Problem(
            IDEMPOTENCY_MISMATCH,
            "this Idempotency-Key was used with another body or route; use a fresh one",
            param="Idempotency-Key",
        )
    return Response(body, status=status, headers={"Idempotency-Replayed": "true"})


def _store(
    who: Principal, key: str, route: str, fingerprint: bytes, response: Response, shown_once: str | None
) -> None:
    body = {**response.data, shown_once: None} if shown_once else response.data
    row = Idempotency(
        tenant_id=who.tenant_id,
        principal=who.name,
        key=key,
        route=route,
        fingerprint=fingerprint,
        status=response.status_code,
        body=body,
        expires_at=utcnow() + KEPT,
    )
    # An answer that is replayed no more may still be there; the key is locked.
    Idempotency.objects.bulk_create(
        [row],
        update_conflicts=True,
        unique_fields=["tenant", "principal", "key"],
        update_fields=["route", "fingerprint", "status", "body", "expires_at"],
    )
