"""The internal listener: the meter pulls the journal, the reconciler probes a replica, operators look."""

import asyncio
import hmac
import re
from collections.abc import Callable
from urllib.parse import parse_qs

import hiredis
import orjson

from inference.gateway.boot_log import BootLog
from inference.gateway.config import Config
from inference.gateway.flights import Flights
from inference.gateway.journal import page
from inference.gateway.metrics import Metrics
from inference.gateway.projection import Projection
from inference.gateway.reader import Request
from inference.gateway.redis_client import Redis, Unreachable
from inference.gateway.server import Connection
from inference.gateway.surfaces import CHAT, TEXT
from inference.gateway.upstream import Pool
from inference.gateway.whole import ask
from kernel.problems import (
    INVALID_PARAMETER,
    NO_REPLICA_READY,
    NOT_FOUND,
    UNAUTHENTICATED,
    Problem,
)

JOURNAL = "/internal/journal"
MAX_PAGE = 5000
_BOOT = re.compile(re.escape(JOURNAL) + r"/([0-9a-f-]{36})")


class Internal:
    """Handler of the internal listener. Everything but readiness needs the internal token."""

    def __init__(
        self,
        *,
        config: Config,
        boots: dict[str, BootLog],
        boot_id: str,
        redis: Redis,
        projection: Projection,
        pool: Pool,
        flights: Flights,
        metrics: Metrics,
        not_ready: Callable[[], list[str]],
        on_meter: Callable[[], None],
    ) -> None:
        self._config = config
        self._boots = boots
        self._boot_id = boot_id
        self._redis = redis
        self._projection = projection
        self._pool = pool
        self._flights = flights
        self._metrics = metrics
        self._not_ready = not_ready
        self._on_meter = on_meter

    async def __call__(self, request: Request, client: Connection) -> None:
        """Answer one request."""
        route = (request.method, request.path)
        if route == ("GET", "/internal/ready"):
            await self._ready(client)
            return
        expected = f"Bearer {self._config.internal_token}".encode()
        if not hmac.compare_digest(request.headers.get("authorization", "").encode("latin-1"), expected):
            raise Problem(UNAUTHENTICATED, "Send the internal token as a Bearer token.")
        if route == ("GET", JOURNAL):
            self._boot_list(client)
        elif request.method == "GET" and (boot := _BOOT.fullmatch(request.path)):
            await self._events(boot[1], request.query, client)
        elif route == ("GET", "/internal/metrics"):
            self._exposition(client)
        elif route in (("POST", CHAT), ("POST", TEXT)):
            await self._probe(request, client)
        else:
            raise Problem(NOT_FOUND, f"{request.method} {request.path[:200]} is not served here.")

    async def _ready(self, client: Connection) -> None:
        reasons = self._not_ready()
        try:
            if not await self._projection.complete():
                reasons.append("Redis holds no complete projection or no float yet")
        except (Unreachable, hiredis.ReplyError):
            reasons.append("Redis is not connected")
        client.respond(503 if reasons else 200, orjson.dumps({"ready": not reasons, "reasons": reasons}))

    def _boot_list(self, client: Connection) -> None:
        """`low` is read before the heads, so nothing ended in between is missed."""
        low = self._flights.low_ms()
        boots = [{"boot_id": b.boot_id, "head": b.head, "closed": b.closed} for b in self._boots.values()]
        answer = {
            "gateway_id": self._config.gateway_id,
            "boots": boots,
            "boot_id": self._boot_id,
            "run_id": self._redis.run_id,
            "low": low,
        }
        client.respond(200, orjson.dumps(answer))

    async def _events(self, boot_id: str, query: str, client: Connection) -> None:
        log = self._boots.get(boot_id)
        if log is None:
            raise Problem(NOT_FOUND, "This boot is not here, or all its events have been acknowledged.")
        first, limit = _whole(query, "from", 1), _whole(query, "limit", 1000)
        if first > log.head + 1:
            raise Problem(INVALID_PARAMETER, f"from is {first}; the journal ends at {log.head}.", param="from")
        if boot_id == self._boot_id:
            # The meter asks for a boot only once PostgreSQL knows it: from here on no sealed hold forgets us.
            self._on_meter()
        log.free_below(first)
        if log.closed and not log.segments:
            del self._boots[boot_id]
        answer = await asyncio.to_thread(page, log, first, min(limit, MAX_PAGE))
        client.respond(200, orjson.dumps(answer))

    def _exposition(self, client: Connection) -> None:
        gauges = {
            "gateway_admits": int(not self._not_ready()),
            "gateway_open_requests": len(self._flights.open),
            "gateway_journal_head": self._boots[self._boot_id].head,
            "gateway_redis_connected": int(self._redis.run_id is not None),
            "gateway_clock_offset_ms": self._redis.clock_offset_ms,
        }
        text = self._metrics.render(gauges).encode()
        client.respond(200, text, media="text/plain; version=0.0.4")

    async def _probe(self, request: Request, client: Connection) -> None:
        """One request straight to a replica in any state: no admission, no bill, the engine's answer."""
        deployment_id, _, pod_uid = request.headers.get("x-moorage-pod", "").partition("/")
        try:
            pods = await self._projection.pods(deployment_id, fresh=True)
        except (Unreachable, hiredis.ReplyError):
            pods = []
        pod = next((pod for pod in pods if pod.pod_uid == pod_uid), None)
        if pod is None:
            raise Problem(NO_REPLICA_READY, "X-Moorage-Pod names no replica: <deployment id>/<pod uid>.")
        status, body = await ask(self._pool, pod, request.path, request.body, request.request_id)
        client.respond(status, body)


def _whole(query: str, name: str, default: int) -> int:
    text = parse_qs(query).get(name, [str(default)])[0]
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise Problem(INVALID_PARAMETER, f"`{name}` is a whole number, at least 1.", param=name)
    return int(text)
