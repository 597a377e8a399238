"""The projection: intent from PostgreSQL, written to the gateways' Redis in the encodings of kernel.wire.

A write older than what Redis has is dropped there, so two writers may race. `project_all` alone is
enough: it rebuilds an empty Redis and sets the epoch, without which gateways admit nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from uuid import UUID

import redis
from django.conf import settings
from redis.client import Pipeline

from billing import selectors as billing
from inference import selectors as inference
from inference.ports import Unavailable
from kernel import ids, wire
from kernel.clock import month_of, utcnow
from kernel.pricing import canonical
from tenants.models import ApiKey, Scope, Standing, Tenant
from tenants.selectors import api_key_line

AT_ONCE = 500  # records in one write to Redis
# Deployments whose pods are written at once; gateways wait for so long.
_BATCH = 100
# KEYS key; ARGV version, record: only forward.
_SET_KEY = """
if tonumber(redis.call('HGET', KEYS[1], 'v') or '-1') > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'r', ARGV[2]) return 1
"""
# KEYS route, its tenant's endpoints, shared names; ARGV generation, record, id, shared name or ''.
_SET_ROUTE = """
local old = redis.call('GET', KEYS[1])
if old and cjson.decode(old).generation > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[3], ARGV[4], ARGV[3]) end
return 1
"""


@cache
def client() -> redis.Redis:
    """The gateways' Redis; one pool per process."""
    return redis.Redis.from_url(settings.REDIS_GATEWAY_URL, socket_timeout=5, socket_connect_timeout=2)


def key_record(key: ApiKey, *, purses_of: Callable[[UUID, str], list[str]] = billing.purses_of) -> wire.KeyRecord:
    """What gateways must know of a key; a revoked one stays, so that they can say so."""
    return wire.KeyRecord(
        key_id=str(key.id),
        public_id=key.public_id,
        tenant_id=str(key.tenant_id),
        digest=bytes(key.secret_hmac).hex(),
        version=key.version,
        currency=key.tenant.currency,
        purses=purses_of(key.tenant_id, key.tenant.currency),
        rpm=key.rpm,
        concurrency=key.concurrency,
        live=key.revoked_at is None and Scope.INFERENCE in key.scopes,
        suspended=key.tenant.standing == Standing.SUSPENDED,
        expires_at=key.expires_at.timestamp() if key.expires_at else None,
        models=key.allowed_models,
        tpm_cached=key.tpm_cached,
        tpm_uncached=key.tpm_uncached,
        tpm_generated=key.tpm_generated,
        spend_cap_pico=key.spend_cap_pico,
        user_cap_pico=key.user_cap_pico,
        endpoint_caps_pico={cap.endpoint_id: cap.cap_pico for cap in key.tenant.endpoint_caps.all()},
    )


def project_key(record: wire.KeyRecord) -> None:
    """Write one key's record: it holds at every gateway from here on."""
    _write_key(client(), record)


def cut_streams(key_id: str) -> None:
    """Ask every gateway to end what still runs under a revoked key; they look each second."""
    now_s = int(utcnow().timestamp())
    client().zadd(wire.CUT, {key_id: now_s})
    client().zremrangebyscore(wire.CUT, "-inf", now_s - wire.KEPT_S)


def seed_spend(record: wire.KeyRecord) -> None:
    """Begin the month's counter of each cap with what is posted, where Redis has none: never touch one that runs.

    A rotated key goes on from what its predecessors spent; what the old one spends on its last day counts there alone.
    Before the record itself, where the tenant's usage can be read.
    """
    start, end = month_of(utcnow())
    until_s = int(end.timestamp()) + wire.KEPT_S
    capped: list[tuple[str, UUID | None, str]] = [
        (wire.spend_at_endpoint(record.tenant_id, name), None, name) for name in record.endpoint_caps_pico
    ]
    if record.spend_cap_pico:
        capped.append((record.key_id, UUID(record.key_id), ""))
    for whose, key_id, endpoint_id in capped:
        name = wire.spend(whose, wire.month(start))
        if not client().exists(name):
            key_ids = api_key_line(key_id) if key_id else []
            spent = billing.usage_total(UUID(record.tenant_id), start, api_key_ids=key_ids, endpoint_id=endpoint_id)
            for before in key_ids[1:2]:  # its counter knows what is under way, too
                spent = max(spent, int(client().get(wire.spend(str(before), wire.month(start))) or 0))
            client().set(name, spent, nx=True, exat=until_s)
    if record.user_cap_pico:
        _seed_end_users(record, start, until_s)


def _seed_end_users(record: wire.KeyRecord, start: datetime, until_s: int) -> None:
    """The same for every end user of a key; the counter of nobody says that it was done."""
    done = wire.spend(wire.spend_of_user(record.key_id, ""), wire.month(start))
    if client().exists(done):
        return
    with client().pipeline(transaction=False) as pipe:
        for whose, pico in spend_of_end_users(record).items():
            pipe.set(wire.spend(whose, wire.month(start)), pico, nx=True, exat=until_s)
        pipe.execute()


def spend_of_end_users(record: wire.KeyRecord) -> dict[str, int]:
    """Whose `spend` → pico-units posted this month under a key and its predecessors, of every end user and nobody."""
    key_ids = api_key_line(UUID(record.key_id))
    spent = billing.usage_by_end_user(UUID(record.tenant_id), month_of(utcnow())[0], api_key_ids=key_ids)
    return {wire.spend_of_user(record.key_id, user): pico for user, pico in {**spent, "": 0}.items()}


def spend_forget(*whose: str) -> None:
    """End this month's counters of a cap that is gone: they run no more, so a cap set anew must not go on from them."""
    client().delete(*[wire.spend(one, wire.month(utcnow())) for one in whose])


def project_routes(endpoint_ids: Collection[UUID]) -> None:
    """Write the routes of endpoints; those whose delete was asked for are left to `remove_route`."""
    try:
        with client().pipeline(transaction=False) as pipe:
            for record in inference.route_list(endpoint_ids):
                _write_route(pipe, record)
            pipe.execute()
    except redis.RedisError as error:
        raise Unavailable(f"the gateways' Redis: {error}") from error


def remove_route(endpoint_id: UUID) -> None:
    """Take an endpoint out of every gateway's sight."""
    public_id = ids.encode(ids.ENDPOINT, endpoint_id)
    try:
        raw = client().get(wire.route(public_id))
        if raw is None:
            return
        record = wire.load_route(raw)
        pipe = client().pipeline(transaction=True)
        pipe.delete(wire.route(public_id))
        if not record.tpm:  # a reservation's pods are the shared endpoint's
            pipe.delete(*(wire.pods(item.deployment_id) for item in record.deployments))
        pipe.srem(wire.endpoints(record.tenant_id), public_id)
        if record.shared:
            pipe.hdel(wire.SHARED, record.model)
        pipe.execute()
    except redis.RedisError as error:
        raise Unavailable(f"the gateways' Redis: {error}") from error


def publish_pods(pods_of: Mapping[UUID, Sequence[wire.PodRecord]]) -> None:
    """Replace the pods of deployments, each deployment's whole."""
    deployments = list(pods_of.items())
    try:
        for first in range(0, len(deployments), _BATCH):
            pipe = client().pipeline(transaction=True)
            for deployment_id, pods in deployments[first : first + _BATCH]:
                name = wire.pods(str(deployment_id))
                pipe.delete(name)
                if pods:
                    pipe.hset(name, mapping={pod.pod_uid: wire.dumps(pod) for pod in pods})
            pipe.execute()
    except redis.RedisError as error:
        raise Unavailable(f"the gateways' Redis: {error}") from error


def project_sheets() -> None:
    """Write every price sheet that is or will be in force."""
    by_key: dict[str, dict[str, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for sheet in billing.sheets_for_projection():
        owner = sheet.tenant_id or "*"
        by_key[wire.sheets(sheet.sku, sheet.region, sheet.currency)][owner].append(canonical(sheet.body()))
    pipe = client().pipeline(transaction=True)
    for name, owners in by_key.items():
        pipe.hset(name, mapping={owner: b"[" + b",".join(bodies) + b"]" for owner, bodies in owners.items()})
    pipe.execute()


def project_all() -> None:
    """Everything, and the epoch last: from then on an absent key means that there is none."""
    keys = ApiKey.objects.select_related("tenant").prefetch_related("tenant__endpoint_caps")
    purses_of = cache(billing.purses_of)
    with client().pipeline(transaction=False) as pipe:
        for key in keys.iterator(chunk_size=AT_ONCE):
            known = key_record(key, purses_of=purses_of)
            seed_spend(known)
            _write_key(pipe, known)
            _send_if_many(pipe)
        for record in inference.route_list():
            _write_route(pipe, record)
            _send_if_many(pipe)
        pipe.execute()
    _remove_stray_routes()
    project_sheets()
    client().set(wire.EPOCH, "1")


def _remove_stray_routes() -> None:
    """Take away routes of endpoints that are to go: one may have gone while its route was being written.

    Redis is read before PostgreSQL, so an endpoint that is made meanwhile is not among the strays.
    """
    pipe = client().pipeline(transaction=False)
    for tenant_id in Tenant.objects.values_list("id", flat=True):
        pipe.smembers(wire.endpoints(tenant_id))
    routed = {name.decode() for names in pipe.execute() for name in names}
    for stray in routed - inference.endpoint_ids_live():
        remove_route(ids.decode(ids.ENDPOINT, stray))


def _send_if_many(pipe: Pipeline) -> None:
    if len(pipe) >= AT_ONCE:
        pipe.execute()


def _write_key(to: redis.Redis, record: wire.KeyRecord) -> None:
    to.eval(_SET_KEY, 1, wire.key(record.public_id), record.version, wire.dumps(record))


def _write_route(to: redis.Redis, record: wire.RouteRecord) -> None:
    to.eval(
        _SET_ROUTE,
        3,
        wire.route(record.endpoint_id),
        wire.endpoints(record.tenant_id),
        wire.SHARED,
        record.generation,
        wire.dumps(record),
        record.endpoint_id,
        record.model if record.shared else "",
    )
