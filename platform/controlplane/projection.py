"""The projection: intent from PostgreSQL, written to the gateways' Redis in the encodings of kernel.wire.

A write older than what Redis has is dropped there, so two writers may race. `project_all` alone is
enough: it rebuilds an empty Redis and sets the epoch, without which gateways admit nothing.
"""

import logging
from functools import cache

import redis
from django.conf import settings

from kernel import wire
from tenants.models import ApiKey, Standing

log = logging.getLogger(__name__)

# KEYS key hash; ARGV version, record: only forward.
_SET_KEY = """
if tonumber(redis.call('HGET', KEYS[1], 'v') or '-1') > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'r', ARGV[2]) return 1
"""
# KEYS route; ARGV generation, record: only forward.
_SET_ROUTE = """
local old = redis.call('GET', KEYS[1])
if old and cjson.decode(old).generation > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2]) return 1
"""
PURSES = ["general"]


@cache
def client() -> "redis.Redis[bytes]":
    """The gateways' Redis; one pool per process."""
    return redis.Redis.from_url(
        settings.REDIS_GATEWAY_URL, socket_timeout=5, socket_connect_timeout=2, health_check_interval=30
    )


def project_key(key: ApiKey) -> None:
    """Write one key's record; a revocation holds at every gateway from here on."""
    record = wire.KeyRecord(
        key_id=str(key.id),
        public_id=key.public_id,
        tenant_id=str(key.tenant_id),
        digest=bytes(key.secret_hmac).hex(),
        version=key.version,
        currency=key.tenant.currency,
        purses=PURSES,
        rpm=key.rpm,
        concurrency=key.concurrency,
        live=key.revoked_at is None and "inference" in key.scopes,
        suspended=key.tenant.standing == Standing.SUSPENDED,
        expires_at=key.expires_at.timestamp() if key.expires_at else None,
        models=key.allowed_models,
    )
    client().eval(_SET_KEY, 1, wire.key(key.public_id), record.version, wire.dumps(record))
