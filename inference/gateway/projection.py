"""Reads what the control plane projected into Redis: keys, routes, replicas, prices. Kept for a second.

A key record is kept longer: the admission script compares its version on every request. What a later read finds
unchanged is not parsed anew, so a request costs the same however many tenants and endpoints there are.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from inference.gateway.core.quote import Sheets
from inference.gateway.redis_client import Redis
from kernel import wire
from kernel.pricing import Sheet, sheet_from_body
from kernel.problems import UNAVAILABLE, Problem

FRESH_S = 1.0
MAX_ENTRIES = 20_000

_EVERYBODY = b"*"

T = TypeVar("T")
R = TypeVar("R")


class Projection:
    """Every read raises Unreachable while Redis is away."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._clock = clock
        self._cache: dict[tuple[str, str], tuple[float, object, Any]] = {}
        self._keys: dict[str, wire.KeyRecord] = {}

    async def key(self, public_id: str, *, kept: bool = True) -> wire.KeyRecord | None:
        """The record of a key, None where there is none.

        Problem (never "no such key") while the projection is not complete; `kept` False reads anew.
        """
        if kept and public_id in self._keys:
            return self._keys[public_id]
        _bound(self._keys)
        record = await self._certain("HGET", wire.key(public_id), "r")
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
        """The endpoint behind a public model name, None where there is none. Problem as for a key."""
        kept: str | None = self._kept("shared", name)
        if kept is None:
            kept = self._keep("shared", name, await self._certain("HGET", wire.SHARED, name), bytes.decode)
        return kept

    async def own_endpoints(self, tenant_id: str) -> list[str]:
        """Ids of a tenant's endpoints, sorted."""
        members = await self._redis.call("SMEMBERS", wire.endpoints(tenant_id))
        return sorted(member.decode() for member in members)

    async def route(self, endpoint_id: str) -> wire.RouteRecord | None:
        """The intent for an endpoint, None where there is none; the replicas of a known one are read with it.

        Problem as for a key.
        """
        kept: wire.RouteRecord | None = self._kept("route", endpoint_id)
        if kept is None:
            _, _, known = self._cache.get(("route", endpoint_id), (0.0, None, None))
            behind = [item.deployment_id for item in known.deployments] if known else []
            look = [("HVALS", wire.pods(deployment_id)) for deployment_id in behind]
            text, *pods = await self._redis.pipeline(("GET", wire.route(endpoint_id)), *look)
            if text is None:
                text = await self._certain("GET", wire.route(endpoint_id))
            for deployment_id, records in zip(behind, pods, strict=True):
                self._keep("pods", deployment_id, records, _load_pods)
            kept = self._keep("route", endpoint_id, text, wire.load_route)
        return kept

    async def pods(self, deployment_id: str, *, fresh: bool = False) -> list[wire.PodRecord]:
        """The replicas of a deployment in any state; `fresh` reads anew."""
        kept: list[wire.PodRecord] | None = None if fresh else self._kept("pods", deployment_id)
        if kept is None:
            records = await self._redis.call("HVALS", wire.pods(deployment_id))
            kept = self._keep("pods", deployment_id, records, _load_pods)
        return kept or []

    async def sheets(self, *, tenant_id: str, sku: str, region: str, currency: str) -> Sheets:
        """The sheets that may price a request; tenants without sheets of their own share one object."""
        name = wire.sheets(sku, region, currency)
        owners: dict[bytes, Sheets] | None = self._kept("sheets", name)
        if owners is None:
            owners = self._keep("sheets", name, await self._redis.call("HGETALL", name), _load_owners) or {}
        return owners.get(tenant_id.encode()) or owners.get(_EVERYBODY) or Sheets((), ())

    async def complete(self) -> bool:
        """Whether the projection and the lender have filled this Redis."""
        found = await self._redis.call("MGET", wire.EPOCH, wire.FLOAT_RUN)
        return None not in found

    async def _certain(self, *look: str) -> bytes | None:
        """A reply, None only where the projection is complete: it says so first. Problem while it does not."""
        marks, found = await self._redis.pipeline(("MGET", wire.EPOCH, wire.FLOAT_RUN), look)
        if None in marks:
            raise incomplete()
        return cast("bytes | None", found)

    def _kept(self, kind: str, name: str) -> Any:
        """What was read within the last second, or None."""
        kept = self._cache.get((kind, name))
        return kept[2] if kept is not None and kept[0] > self._clock() else None

    def _keep(self, kind: str, name: str, raw: R | None, load: Callable[[R], T]) -> T | None:
        """Keep what was read; an absence is not kept, so that what is created next is found at once."""
        if not raw:
            self._cache.pop((kind, name), None)
            return None
        _, before, value = self._cache.get((kind, name), (0.0, None, None))
        if before != raw:
            _bound(self._cache)
            value = load(raw)
        self._cache[kind, name] = (self._clock() + FRESH_S, raw, value)
        return cast("T", value)


def incomplete() -> Problem:
    """The answer while Redis is empty or away: never that a key is unknown."""
    return Problem(UNAVAILABLE, "The gateway is not ready to admit requests; retry.", retry_after_s=1)


def _load_pods(records: Sequence[bytes]) -> list[wire.PodRecord]:
    return [wire.load_pod(record) for record in records]


def _load_owners(flat: Sequence[bytes]) -> dict[bytes, Sheets]:
    own = {owner: _load_sheets(text) for owner, text in zip(flat[::2], flat[1::2], strict=True)}
    public = own.pop(_EVERYBODY, ())
    return {_EVERYBODY: Sheets((), public), **{owner: Sheets(sheets, public) for owner, sheets in own.items()}}


def _load_sheets(text: bytes) -> tuple[Sheet, ...]:
    return tuple(sheet_from_body(body) for body in json.loads(text))


def _bound(entries: dict[Any, Any]) -> None:
    if len(entries) >= MAX_ENTRIES:
        entries.clear()
