"""API keys across two rooms: the row in PostgreSQL, and after commit the record at the gateways."""

import logging
from datetime import datetime
from functools import partial
from uuid import UUID

from django.db import transaction
from redis.exceptions import RedisError

from controlplane.projection import key_record, project_key
from kernel.wire import KeyRecord
from tenants import services
from tenants.models import ApiKey

log = logging.getLogger(__name__)


def key_create(
    *,
    tenant_id: UUID,
    name: str,
    actor: str,
    scopes: list[str] | None = None,
    allowed_models: list[str] | None = None,
    rpm: int = 600,
    concurrency: int = 64,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key that gateways know once the transaction is committed; its text is shown once."""
    key, text = services.api_key_create(
        tenant_id=tenant_id,
        name=name,
        actor=actor,
        scopes=scopes,
        allowed_models=allowed_models,
        rpm=rpm,
        concurrency=concurrency,
        expires_at=expires_at,
    )
    transaction.on_commit(partial(_project, key_record(key)))
    return key, text


def key_revoke(*, key: ApiKey, actor: str) -> ApiKey:
    """Revoke a key: after commit it is refused from the next request on, at every gateway."""
    revoked = services.api_key_revoke(key=key, actor=actor)
    transaction.on_commit(partial(_project, key_record(revoked)))
    return revoked


def _project(record: KeyRecord) -> None:
    try:
        project_key(record)
    except RedisError as error:
        log.warning("key %s is not projected yet (%s); the next full projection does it", record.public_id, error)
