"""Reads what the control plane projected into Redis: keys, routes, replicas, prices. Kept for a second.

A key record is kept longer: the admission script compares its version on every request.
"""

import json
import time
from typing import Any, TypeVar

from inference.gateway.core.quote import Sheets
from inference.gateway.redis_client import Redis
from kernel import wire
from kernel.pricing import Sheet, sheet_from_body
from kernel.problems import UNAVAILABLE, Problem

FRESH_S = 1.0
MAX_ENTRIES = 20_000

T = TypeVar("T")


class Projection:
    """Every read raises Unreachable while Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._clock = time.monotonic
        self._cache: dict[tuple[str, str], tuple[float, object]] = {}
        self._keys: dict[str, wire.KeyRecord] = {}

    async def key(self, public_id: str, *, kept: bool = True) -> wire.KeyRecord | None:
        """The record of a key, None where there is none.

        Problem (never "no such key") while the projection is not complete; `kept` False reads anew.
        """
        if kept and public_id in self._keys:
            return self._keys[public_id]
        _bound(self._keys)
        (epoch, run), record = await self._redis.pipeline(
            ("MGET", wire.EPOCH, wire.FLOAT_RUN), ("HGET", wire.key(public_id), "r")
        )
        if epoch is None or run is None:
            raise incomplete()
        if record is None:
            self._keys.pop(public_id, None)
            return None
        self._keys[public_id] = wire.load_key(record)
        return self._keys[public_id]

    async def shared(self) -> dict[str, str]:
        """Every public model name and its endpoint, read anew."""
        flat = await self._redis.call("HGETALL", wire.SHARED)
        return {name.decode(): endpoint.decode() for name, endpoint in zip(flat[::2], flat[1::2], strict=True)}

    async def shared_endpoint(self, name: str) -> str | None:
        """The endpoint behind a public model name, None where there is none."""
        kept: str | None = self._kept("shared", name)
        if kept is None:
            endpoint = await self._redis.call("HGET", wire.SHARED, name)
            kept = self._keep("shared", name, None if endpoint is None else endpoint.decode())
        return kept

    async def own_endpoints(self, tenant_id: str) -> list[str]:
        """Ids of a tenant's endpoints, sorted."""
        members = await self._redis.call("SMEMBERS", wire.endpoints(tenant_id))
        return sorted(member.decode() for member in members)

    async def route(self, endpoint_id: str) -> wire.RouteRecord | None:
        """The intent for an endpoint, None where there is none."""
        kept: wire.RouteRecord | None = self._kept("route", endpoint_id)
        if kept is None:
            text = await self._redis.call("GET", wire.route(endpoint_id))
            kept = self._keep("route", endpoint_id, None if text is None else wire.load_route(text))
        return kept

    async def pods(self, deployment_id: str, *, fresh: bool = False) -> list[wire.PodRecord]:
        """The replicas of a deployment in any state; `fresh` reads anew."""
        kept: list[wire.PodRecord] | None = None if fresh else self._kept("pods", deployment_id)
        if kept is None:
            records = await self._redis.call("HVALS", wire.pods(deployment_id))
            kept = self._keep("pods", deployment_id, [wire.load_pod(record) for record in records])
        return kept

    async def sheets(self, *, tenant_id: str, sku: str, region: str, currency: str) -> Sheets:
        """The sheets that may price a request."""
        name = wire.sheets(sku, region, currency)
        kept: Sheets | None = self._kept(name, tenant_id)
        if kept is None:
            own, public = await self._redis.call("HMGET", name, tenant_id, "*")
            kept = self._keep(name, tenant_id, Sheets(_load_sheets(own), _load_sheets(public)))
        return kept

    async def complete(self) -> bool:
        """Whether the projection and the lender have filled this Redis."""
        found = await self._redis.call("MGET", wire.EPOCH, wire.FLOAT_RUN)
        return None not in found

    def _kept(self, kind: str, name: str) -> Any:
        """What was read within the last second, or None."""
        kept = self._cache.get((kind, name))
        return kept[1] if kept is not None and kept[0] > self._clock() else None

    def _keep(self, kind: str, name: str, value: T) -> T:
        """Keep what was read; an absence is not kept, so that what is created next is found at once."""
        if value is not None:
            _bound(self._cache)
            self._cache[kind, name] = (self._clock() + FRESH_S, value)
        return value


def incomplete() -> Problem:
    """The answer while Redis is empty or away: never that a key is unknown."""
    return Problem(UNAVAILABLE, "The gateway is not ready to admit requests; retry.", retry_after_s=1)


def _load_sheets(text: bytes | None) -> tuple[Sheet, ...]:
    return () if text is None else tuple(sheet_from_body(body) for body in json.loads(text))


def _bound(entries: dict[Any, Any]) -> None:
    if len(entries) >= MAX_ENTRIES:
        entries.clear()
