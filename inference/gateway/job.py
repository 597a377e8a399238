"""One admitted request: what it was promised, and the usage event that it becomes."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from inference.gateway.admission import Grant
from inference.gateway.core.quote import cost
from inference.gateway.core.request import Call, Size
from inference.gateway.core.usage import Counts, Running
from kernel import wire
from kernel.clock import to_ms
from kernel.ids import minter
from kernel.usage import ENGINE_PARTIAL, TOKENS

_new_event_id = minter()
_NO_COUNTS = Counts().meters()


@dataclass(slots=True)
class Job:
    """`facts` is its usage event as last told. `opened` and `ended` say how far the journal got; `ended` covers
    the reservation as well.
    """

    path: str
    call: Call
    size: Size
    route: wire.RouteRecord
    deployment: wire.DeploymentRoute
    grant: Grant
    facts: dict[str, Any]
    clock: Callable[[], float]
    began: float
    pod: wire.PodRecord | None = None
    attempt: int = 1
    opened: bool = False
    ended: bool = False
    _priced: tuple[Counts | None, int] = (None, 0)

    @classmethod
    def begin(
        cls,
        *,
        source: str,
        path: str,
        call: Call,
        size: Size,
        route: wire.RouteRecord,
        deployment: wire.DeploymentRoute,
        grant: Grant,
        user: str,
    ) -> "Job":
        """A request that was admitted just now; `user` is its end user's digest or ""."""
        clock = asyncio.get_running_loop().time
        facts = _nothing_yet(source, route, deployment, grant)
        if user:
            facts["end_user"] = user
        return cls(path, call, size, route, deployment, grant, facts, clock, clock())

    @property
    def request_id(self) -> str:
        """The server's own id of the request."""
        return self.grant.request_id

    def running(self) -> Running:
        """A fresh count for one attempt."""
        return Running(
            n=self.call.n,
            prompts=self.call.prompts,
            max_tokens=self.size.max_tokens,
            max_model_len=self.route.max_model_len,
        )

    def cost(self, counts: Counts) -> int:
        """Pico-units under the sheet of admission; worked out once for the same counts."""
        if self._priced[0] is not counts:
            self._priced = counts, cost(self.grant.quote.sheet, counts)
        return self._priced[1]

    def now(self) -> datetime:
        """Admission time plus monotonic time since: no clock step bends a duration."""
        return self.grant.started_at + timedelta(seconds=self.clock() - self.began)

    def opening(self) -> dict[str, Any]:
        """The usage event if nothing more should be heard of the request; good until the next is asked for."""
        facts = self.facts
        facts["finish"] = "gateway_crash"
        facts["attempt"] = self.attempt
        facts["pod_uid"] = None if self.pod is None else self.pod.pod_uid
        return facts

    def event(
        self,
        counts: Counts,
        *,
        finish: str,
        quoted_pico: int = 0,
        provenance: str = ENGINE_PARTIAL,
        engine_usage: Mapping[str, Any] | None = None,
        waste: int = 0,
    ) -> dict[str, Any]:
        """The usage event as of now, in the shape of `UsageEvent.to_json`."""
        facts = self.opening()
        facts["ended_at"] = self.now().isoformat()
        facts["counts"] = counts.meters()
        facts["quoted_pico"] = str(quoted_pico)
        facts["provenance"] = provenance
        facts["finish"] = finish
        facts["engine_usage"] = engine_usage
        facts["waste"] = waste
        return facts


def _nothing_yet(
    source: str, route: wire.RouteRecord, deployment: wire.DeploymentRoute, grant: Grant
) -> dict[str, Any]:
    """The event of a request that has just been admitted."""
    started_at = grant.started_at.isoformat()
    return {
        "event_id": _new_event_id(to_ms(grant.started_at)),  # by the script's clock, which no step of ours bends
        "source": source,
        "tenant_id": grant.key.tenant_id,
        "subject_id": grant.request_id,
        "kind": TOKENS,
        "sku": grant.quote.sheet.sku,
        "region": route.region,
        "currency": grant.key.currency,
        "started_at": started_at,
        "ended_at": started_at,
        "counts": _NO_COUNTS,
        "sheet": grant.quote.sheet_sha256.hex(),
        "quoted_pico": "0",
        "provenance": ENGINE_PARTIAL,
        "finish": "",
        "endpoint_id": route.endpoint_id,
        "deployment_id": deployment.deployment_id,
        "api_key_id": grant.key.key_id,
        "attempt": 1,
        "pod_uid": None,
        "accelerator": None,
        "accelerator_count": None,
        "engine_usage": None,
        "waste": 0,
        "purse": grant.purse,
        "generation": grant.generation,
        "reserved_pico": str(grant.reserved_pico),
    }
