"""API keys across two rooms: the row in PostgreSQL, and after commit the record at the gateways."""

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from uuid import UUID

from django.db import transaction
from redis.exceptions import RedisError

from controlplane.projection import (
    cut_streams,
    key_record,
    project_key,
    seed_spend,
    spend_forget,
    spend_of_end_users,
)
from kernel.wire import KeyRecord, spend_at_endpoint
from tenants import services
from tenants.models import ApiKey, Role
from tenants.permissions import check_scopes

log = logging.getLogger(__name__)


def key_create(
    *,
    tenant_id: UUID,
    name: str,
    actor: str,
    maker: Collection[str] = tuple(Role),
    scopes: list[str] | None = None,
    allowed_models: list[str] | None = None,
    rpm: int = 600,
    concurrency: int = 64,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key that gateways know once the transaction is committed; its text is shown once.

    `maker` are the roles or scopes of whoever makes it. Problem FORBIDDEN for a scope that they lack.
    """
    check_scopes(scopes or (), maker)
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


def key_rotate(*, key: ApiKey, actor: str, maker: Collection[str] = tuple(Role)) -> tuple[ApiKey, str]:
    """A successor with the same limits, and its text; the old key goes on for a day. Problems: forbidden, conflict."""
    check_scopes(key.scopes, maker)
    old, new, text = services.api_key_rotate(key=key, actor=actor)
    _carry([old, new])
    return new, text


def key_limit(*, key: ApiKey, limits: Mapping[str, int], actor: str) -> ApiKey:
    """Change some of a key's limits: after commit they hold from the next request on, at every gateway."""
    limited = services.api_key_limit(key=key, limits=limits, actor=actor)
    _carry([limited])
    if not limited.spend_cap_pico:
        transaction.on_commit(partial(_forget, str(limited.id)))
    if limits.get("user_cap_pico") == 0:
        transaction.on_commit(partial(_forget, *spend_of_end_users(key_record(limited))))
    return limited


def endpoint_cap(*, tenant_id: UUID, endpoint_id: str, cap_pico: int, actor: str) -> None:
    """Cap what a tenant spends at an endpoint in a month, its own or a shared one; 0 takes the cap away."""
    keys = services.endpoint_cap_set(tenant_id=tenant_id, endpoint_id=endpoint_id, cap_pico=cap_pico, actor=actor)
    _carry(keys)
    if not cap_pico:
        transaction.on_commit(partial(_forget, spend_at_endpoint(tenant_id, endpoint_id)))


def key_revoke(*, key: ApiKey, actor: str, cut: bool = False) -> ApiKey:
    """Revoke a key: after commit it is refused from the next request on, at every gateway.

    What runs under it goes on to its end, unless `cut`: then it is ended within seconds.
    """
    revoked = services.api_key_revoke(key=key, actor=actor)
    transaction.on_commit(partial(_project, key_record(revoked), cut=cut))
    return revoked


def _carry(keys: Sequence[ApiKey]) -> None:
    """Caps count from the month's beginning, so their counters are begun while the tenant's usage can be read."""
    for record in map(key_record, keys):
        try:
            seed_spend(record)
        except RedisError as error:
            log.warning("the spend of key %s is not counted yet: %s", record.public_id, error)
        transaction.on_commit(partial(_project, record))


def _forget(*whose: str) -> None:
    try:
        spend_forget(*whose)
    except RedisError as error:
        log.warning("the spend of %s is still counted: %s", ", ".join(whose), error)


def _project(record: KeyRecord, *, cut: bool = False) -> None:
    try:
        project_key(record)
        if cut:
            cut_streams(record.key_id)
    except RedisError as error:
        log.warning("key %s is not projected yet (%s); the next full projection does it", record.public_id, error)
