"""How many tokens a message would have: asked of an engine, admitted like any request, free of charge."""

from datetime import datetime

import orjson

from inference.gateway import authn, engine_errors
from inference.gateway.admission import Admission, Ask
from inference.gateway.authn import MESSAGES
from inference.gateway.config import Config
from inference.gateway.core import messages
from inference.gateway.core.quote import Quote, quote
from inference.gateway.core.request import Size
from inference.gateway.projection import Projection
from inference.gateway.reader import Request
from inference.gateway.routing import Router, not_found, visible
from inference.gateway.server import Connection
from inference.gateway.upstream import Pool
from inference.gateway.whole import ask
from kernel import wire
from kernel.pricing import Unrated
from kernel.problems import ENGINE_ERROR, UNRATED, Problem

COUNT_TOKENS = f"{MESSAGES}/count_tokens"
_NOTHING = Size(prompt_tokens=0, max_tokens=0)


class Counting:
    """Handler of the counting route."""

    def __init__(
        self, *, config: Config, projection: Projection, admission: Admission, router: Router, pool: Pool
    ) -> None:
        self._pepper = config.pepper
        self._projection = projection
        self._admission = admission
        self._router = router
        self._pool = pool

    async def __call__(self, request: Request, client: Connection) -> None:
        """Answer one request. It takes a place and counts as a request, but takes no tokens and no money."""
        presented = authn.presented(request)
        key = await authn.authenticate(presented, projection=self._projection, pepper=self._pepper)
        model, body_for = messages.parse_count(request.body)
        route = await self._router.endpoint(key, model)
        deployment = await self._router.deployment(route)

        async def key_anew() -> wire.KeyRecord:
            newer = await authn.authenticate(presented, projection=self._projection, pepper=self._pepper, kept=False)
            if not visible(newer, route, model):
                raise not_found(model)
            return newer

        async def price_at(at: datetime, _beyond: bool) -> Quote:
            sheets = await self._projection.sheets(
                tenant_id=key.tenant_id, sku=deployment.sku, region=route.region, currency=key.currency
            )
            try:
                return quote(sheets, at=at, size=_NOTHING, answers=1)
            except Unrated:
                raise Problem(UNRATED, "No price is in force for this model in your currency yet.") from None

        grant = await self._admission.admit(
            Ask(request.request_id, key, route, _NOTHING, 1, "", key_anew, price_at, lambda _quote, _free: 0)
        )
        try:
            client.answer_headers |= grant.headers
            pod = await self._router.replica(deployment.deployment_id, client)
            with self._router.busy(pod):
                status, raw = await ask(self._pool, pod, COUNT_TOKENS, body_for(route.served_name), request.request_id)
        finally:
            self._admission.settle(request_id=request.request_id, key_id=key.key_id, float_name=None, give_back_pico=0)
        if status != 200:
            raise engine_errors.refusal(status, raw, max_model_len=route.max_model_len)
        client.respond(200, orjson.dumps({"input_tokens": _tokens(raw)}))


def _tokens(raw: bytes) -> int:
    try:
        return int(orjson.loads(raw)["input_tokens"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise Problem(ENGINE_ERROR, "The engine's count could not be read; retry.", retry_after_s=1) from None
