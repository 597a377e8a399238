"""The public listener: an exact list of methods and paths, everything else is refused."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import hiredis
import orjson

from inference.gateway import authn
from inference.gateway.authn import MODELS
from inference.gateway.completions import Completions
from inference.gateway.config import Config
from inference.gateway.counting import COUNT_TOKENS, Counting
from inference.gateway.projection import Projection, incomplete
from inference.gateway.reader import Request
from inference.gateway.redis_client import Unreachable
from inference.gateway.routing import visible
from inference.gateway.server import Connection
from inference.gateway.surfaces import SURFACES
from kernel import wire
from kernel.clock import utcnow
from kernel.problems import METHOD_NOT_ALLOWED, NOT_FOUND, TENANT_SUSPENDED, UNAVAILABLE, Problem

HEALTH = "/healthz"
_METHODS = {HEALTH: "GET", MODELS: "GET", COUNT_TOKENS: "POST", **dict.fromkeys(SURFACES, "POST")}


class Public:
    """Handler of the public listener. It admits while `closed_because` is empty."""

    def __init__(self, *, config: Config, projection: Projection, completions: Completions, counting: Counting) -> None:
        self._config = config
        self._projection = projection
        self._completions = completions
        self._counting = counting
        self.closed_because = "the meter has not asked for this boot's journal yet"

    async def __call__(self, request: Request, client: Connection) -> None:
        """Answer one request."""
        if authn.is_anthropics(request):
            client.spell = Problem.as_anthropic
        method = _METHODS.get(request.path)
        if method is None:
            raise Problem(NOT_FOUND, f"{request.path[:200]} is not a path of this API.")
        if request.method != method:
            client.answer_headers["allow"] = method
            raise Problem(METHOD_NOT_ALLOWED, f"{request.path} takes {method}.")
        if request.path == HEALTH:
            client.respond(200, b'{"status":"ok"}')
            return
        try:
            if request.path == MODELS:
                await self._models(request, client)
            elif self.closed_because:
                authn.presented(request)
                raise Problem(UNAVAILABLE, "The gateway admits no requests at the moment; retry.", retry_after_s=1)
            elif request.path == COUNT_TOKENS:
                await self._counting(request, client)
            else:
                await self._completions(request, client)
        except (Unreachable, hiredis.ReplyError):
            raise incomplete() from None

    async def _models(self, request: Request, client: Connection) -> None:
        """The tenant's own endpoints and the shared models that this key may call."""
        key = await authn.authenticate(
            authn.presented(request), projection=self._projection, pepper=self._config.pepper, kept=False
        )
        if not key.live or (key.expires_at is not None and key.expires_at <= utcnow().timestamp()):
            raise authn.refused()
        if key.suspended:
            raise Problem(TENANT_SUSPENDED, "The account is suspended; see the console for the reason.")
        own = {endpoint: endpoint for endpoint in await self._projection.own_endpoints(key.tenant_id)}
        names = own | await self._projection.shared()
        routes = await asyncio.gather(*[self._projection.route(endpoint) for endpoint in names.values()])
        seen = [
            (name, route)
            for name, route in zip(names, routes, strict=True)
            if route is not None and visible(key, route, name)
        ]
        spelled = _as_anthropic if authn.is_anthropics(request) else _as_openai
        client.respond(200, orjson.dumps(spelled(seen)))


Seen = Sequence[tuple[str, wire.RouteRecord]]  # names that a key may send as `model`, and what is behind each


def _as_openai(seen: Seen) -> dict[str, Any]:
    listed = [
        {
            "id": name,
            "object": "model",
            "created": route.created,
            "owned_by": "moorage" if route.shared else "tenant",
            "max_model_len": route.max_model_len,
        }
        for name, route in seen
    ]
    return {"object": "list", "data": listed}


def _as_anthropic(seen: Seen) -> dict[str, Any]:
    """One page holds all."""
    listed = [
        {
            "type": "model",
            "id": name,
            "display_name": route.model,
            "created_at": datetime.fromtimestamp(route.created, UTC).isoformat(),
            "max_input_tokens": route.max_model_len,
        }
        for name, route in seen
    ]
    ends = (seen[0][0], seen[-1][0]) if seen else (None, None)
    return {"data": listed, "has_more": False, "first_id": ends[0], "last_id": ends[1]}
