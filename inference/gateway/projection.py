"""Reads what the control plane projected into Redis: keys, routes, replicas, prices. Kept for a second.

A key record is kept longer: the admission script compares its version on every request.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
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

        async def read() -> str | None:
            endpoint = await self._redis.call("HGET", wire.SHARED, name)
            return None if endpoint is None else endpoint.decode()

        return await self._fresh("shared", name, read)

    async def own_endpoints(self, tenant_id: str) -> list[str]:
        """Ids of a tenant's endpoints, sorted."""
        members = await self._redis.call("SMEMBERS", wire.endpoints(tenant_id))
        return sorted(member.decode() for member in members)

    async def route(self, endpoint_id: str) -> wire.RouteRecord | None:
        """The intent for an endpoint, None where there is none."""

        async def read() -> wire.RouteRecord | None:
            text = await self._redis.call("GET", wire.route(endpoint_id))
            return None if text is None else wire.load_route(text)

        return await self._fresh("route", endpoint_id, read)

    async def pods(self, deployment_id: str, *, fresh: bool = False) -> list[wire.PodRecord]:
        """The replicas of a deployment in any state; `fresh` reads anew."""

        async def read() -> list[wire.PodRecord]:
            records = await self._redis.call("HVALS", wire.pods(deployment_id))
            return [wire.load_pod(record) for record in records]

        if fresh:
            self._cache.pop(("pods", deployment_id), None)
        return await self._fresh("pods", deployment_id, read)

    async def sheets(self, *, tenant_id: str, sku: str, region: str, currency: str) -> Sheets:
        """The sheets that may price a request."""
        name = wire.sheets(sku, region, currency)

        async def read() -> Sheets:
            own, public = await self._redis.call("HMGET", name, tenant_id, "*")
            return Sheets(_load_sheets(own), _load_sheets(public))

        return await self._fresh(name, tenant_id, read)

    async def complete(self) -> bool:
        """Whether the projection and the lender have filled this Redis."""
        found = await self._redis.call("MGET", wire.EPOCH, wire.FLOAT_RUN)
        return None not in found

    async def _fresh(self, kind: str, name: str, read: Callable[[], Awaitable[T]]) -> T:
        now = asyncio.get_running_loop().time()
        kept = self._cache.get((kind, name))
        if kept is not None and kept[0] > now:
            return kept[1]  # type: ignore[return-value]  # written below for the same kind
        _bound(self._cache)
        value = await read()
        if value is not None:  # what is created in the next second is found at once
            self._cache[kind, name] = (now + FRESH_S, value)
        return value


def incomplete() -> Problem:
    """The answer while Redis is empty or away: never that a key is unknown."""
    return Problem(UNAVAILABLE, "The gateway is not ready to admit requests; retry.", retry_after_s=1)


def _load_sheets(text: bytes | None) -> tuple[Sheet, ...]:
    return () if text is None else tuple(sheet_from_body(body) for body in json.loads(text))


def _bound(entries: dict[Any, Any]) -> None:
    if len(entries) >= MAX_ENTRIES:
        entries.clear()
