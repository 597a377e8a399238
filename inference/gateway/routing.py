"""Where a request goes: endpoint → deployment by weight → replica by power of two choices on our own load.

Where the recipe says so, the two are those that rank first for how the prompt begins.
"""

import asyncio
import hashlib
import random

from inference.gateway.projection import Projection
from inference.gateway.server import ClientGone, Connection
from kernel import ids, wire
from kernel.problems import MODEL_NOT_FOUND, NO_REPLICA_READY, Problem

POLL_S = 0.2
REST_S = 2.0  # a replica that failed is passed over for this long while another is ready
RETRY_AFTER_S = 5
HEAD_START = 8  # requests that the preferred replica may have in flight beyond the second


class Router:
    """Routes by the projection and by what this process has in flight."""

    def __init__(self, projection: Projection, wait_s: float) -> None:
        self._projection = projection
        self._wait_s = wait_s
        self._loop = asyncio.get_running_loop()
        self._in_flight: dict[str, int] = {}  # requests by replica, where there are any
        self._resting: dict[str, float] = {}

    async def endpoint(self, key: wire.KeyRecord, model: str) -> wire.RouteRecord:
        """The endpoint that this key calls `model`. Absent, foreign and not allowed look the same."""
        endpoint_id = await self._projection.shared_endpoint(model) if _is_name(model) else model
        route = None if endpoint_id is None else await self._projection.route(endpoint_id)
        if route is None or not visible(key, route, model):
            raise not_found(model)
        if not route.running or not route.deployments:
            raise Problem(
                NO_REPLICA_READY,
                "The endpoint is paused; resume it in the console.",
                retry_after_s=RETRY_AFTER_S,
            )
        return route

    async def deployment(self, route: wire.RouteRecord) -> wire.DeploymentRoute:
        """One deployment, by weight: among those with a ready replica, if there are any."""
        choices = [d for d in route.deployments if d.weight > 0] or route.deployments
        if len(choices) == 1:
            return choices[0]
        choices = [d for d in choices if await self._ready(d.deployment_id)] or choices
        return random.choices(choices, weights=[max(d.weight, 1) for d in choices])[0]

    async def replica(
        self, deployment_id: str, client: Connection, *, besides: str | None = None, beginning: bytes = b""
    ) -> wire.PodRecord:
        """A ready replica, waiting for one without a word to the client.

        `besides` is taken only if there is no other. Where `beginning` is given, requests with the same one prefer
        the same replica. Problem after the wait; ClientGone if the client leaves.
        """
        ready = await self._ready(deployment_id)
        loop = self._loop
        deadline = loop.time() + self._wait_s
        while not ready:
            if loop.time() >= deadline:
                raise Problem(
                    NO_REPLICA_READY,
                    f"No replica became ready within {self._wait_s:g} s; retry later.",
                    retry_after_s=RETRY_AFTER_S,
                )
            await asyncio.sleep(POLL_S)
            if client.gone:
                raise ClientGone
            ready = await self._ready(deployment_id, fresh=True)
        if len(ready) == 1:
            return ready[0]
        now = loop.time()
        rested = [pod for pod in ready if self._resting.get(pod.pod_uid, 0) < now]
        others = [pod for pod in rested or ready if pod.pod_uid != besides] or ready
        load = self._in_flight.get
        if not beginning:
            return min(random.sample(others, min(2, len(others))), key=lambda pod: load(pod.pod_uid, 0))
        first, *rest = sorted(others, key=lambda pod: _rank(beginning, pod))[:2]
        busier = rest and load(first.pod_uid, 0) > load(rest[0].pod_uid, 0) + HEAD_START
        return rest[0] if busier else first

    def busy(self, pod: wire.PodRecord) -> "_Busy":
        """Counts one request on a replica, for the length of a block."""
        return _Busy(self._in_flight, pod.pod_uid)

    def failed(self, pod: wire.PodRecord) -> None:
        """Pass this replica over for a while."""
        now = self._loop.time()
        self._resting = {uid: until for uid, until in self._resting.items() if until > now}
        self._resting[pod.pod_uid] = now + REST_S

    async def _ready(self, deployment_id: str, *, fresh: bool = False) -> list[wire.PodRecord]:
        pods = await self._projection.pods(deployment_id, fresh=fresh)
        return [pod for pod in pods if pod.state == wire.SERVING]


def _rank(beginning: bytes, pod: wire.PodRecord) -> bytes:
    """An order of replicas for each beginning: one that comes or goes moves no other's share."""
    return hashlib.blake2b(beginning, key=pod.pod_uid.encode(), digest_size=8).digest()


class _Busy:
    """A generator would do the same at three times the cost, on every request."""

    __slots__ = ("_in_flight", "_pod_uid")

    def __init__(self, in_flight: dict[str, int], pod_uid: str) -> None:
        self._in_flight, self._pod_uid = in_flight, pod_uid

    def __enter__(self) -> None:
        self._in_flight[self._pod_uid] = self._in_flight.get(self._pod_uid, 0) + 1

    def __exit__(self, *_: object) -> None:
        left = self._in_flight.pop(self._pod_uid) - 1
        if left:
            self._in_flight[self._pod_uid] = left


def not_found(model: str) -> Problem:
    """One answer for an endpoint that is absent, another tenant's, or not on the key's list."""
    sentence = f"The model {model[:200]!r} does not exist or this key may not call it; see GET /v1/models."
    return Problem(MODEL_NOT_FOUND, sentence, param="model")


def _is_name(model: str) -> bool:
    return not model.startswith(f"{ids.ENDPOINT}_")


def visible(key: wire.KeyRecord, route: wire.RouteRecord, model: str) -> bool:
    """Whether a key may call the endpoint under this name: its tenant's or shared, and on the key's list."""
    listed = key.models is None or model in key.models or route.endpoint_id in key.models
    return listed and (route.shared or route.tenant_id == key.tenant_id)
