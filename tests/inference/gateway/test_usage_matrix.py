"""Every way in which an answer can be asked for and can end, against balance, limiter and event.

One table: why it ended × route × whole or streamed × stream_options × cached × tools × abort.
"""

import http.client
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from kernel import wire
from kernel.pricing import rate, total
from kernel.usage import UsageEvent
from tests.inference.gateway.engine import Engine, Plan
from tests.inference.gateway.test_limits import spent
from tests.inference.gateway.world import Gateway, Tenant, World
from tests.services import wait_until

CHAT, TEXT, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
ABSENT: dict[str, bool] | None = None
OPTIONS = (
    ABSENT,
    {},
    {"include_usage": False},
    {"include_usage": True},
    {"include_usage": True, "continuous_usage_stats": True},
)
PROMPT, OUT = 10, 5
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
ANTHROPIC_TOOLS = [{"name": "look", "input_schema": {"type": "object"}}]


@dataclass(frozen=True)
class Cell:
    """One request and how it goes. `cached` beyond the prompt is an engine's mistake, which must not be believed."""

    route: str
    stream: bool
    options: dict[str, bool] | None
    finish: str
    cached: int
    tools: bool
    abort: bool

    def body(self, model: str) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "max_tokens": 4000 if self.abort else OUT, "stream": self.stream}
        body |= {"prompt": "hello"} if self.route == TEXT else {"messages": [{"role": "user", "content": "hello"}]}
        if self.options is not None:
            body["stream_options"] = self.options
        if self.tools:
            body["tools"] = ANTHROPIC_TOOLS if self.route == MESSAGES else TOOLS
        return body

    def plan(self) -> Plan:
        finish = self.finish if self.finish != "stop_sequence" else "stop"
        return Plan(
            tokens=4000 if self.abort else OUT,
            prompt_tokens=PROMPT,
            cached_tokens=self.cached,
            finish=finish,
            stop_reason="END" if self.finish == "stop_sequence" else None,
            tool=self.tools,
            interval_s=0.01 if self.abort else 0.0,
        )


def cells(route: str, stream: bool, abort: bool) -> Iterator[Cell]:
    """All that are asked in one way; an abort comes before the engine says why it ends and what was cached."""
    finishes = ("stop",) if abort else ("stop", "stop_sequence", "length", "tool_calls", "content_filter", "abort")
    cached = (0, 4) if abort else (0, 4, PROMPT, 14)
    options = OPTIONS if stream and route != MESSAGES else (ABSENT,)
    tools = (False,) if route == TEXT else (False, True)
    for one in itertools.product(options, finishes, cached, tools):
        yield Cell(route, stream, *one, abort)


def send(client: httpx2.Client, tenant: Tenant, cell: Cell, model: str, engine: Engine) -> None:
    """Read the answer to its end; or leave in mid-stream, or before a whole answer while the engine works at it."""
    ask: dict[str, Any] = {"headers": tenant.headers, "json": cell.body(model)}
    if not cell.abort:
        assert client.post(cell.route, **ask).status_code == 200, cell
    elif cell.stream:
        with client.stream("POST", cell.route, **ask) as answer:
            assert answer.status_code == 200, cell
            list(itertools.islice(answer.iter_lines(), 12))
    else:
        before = len(engine.asked)
        waiting = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
        waiting.request("POST", cell.route, json.dumps(ask["json"]), ask["headers"])
        wait_until(lambda: len(engine.asked) > before, f"the engine's share of {cell}")
        waiting.close()


@pytest.mark.parametrize("abort", [False, True], ids=["whole", "abort"])
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("route", [CHAT, TEXT, MESSAGES])
def test_balance_limiter_and_event_agree_however_an_answer_was_asked_for_and_ended(
    world: World, door: Gateway, engine: Engine, route: str, stream: bool, abort: bool
) -> None:
    most = {"tpm_cached": 10**6, "tpm_uncached": 10**6, "tpm_generated": 10**6, "spend_cap_pico": 10**15}
    asked = []
    with httpx2.Client(base_url=door.url) as client:
        for cell in cells(route, stream, abort):
            tenant = world.tenant(**most)
            endpoint = world.endpoint(tenant, engine.address, tpm=10**6).endpoint_id
            engine.plan = cell.plan()
            before, minute = tenant.free(), int(time.time()) // 60
            send(client, tenant, cell, endpoint, engine)
            asked.append((cell, tenant, endpoint, before, minute))
    for cell, tenant, endpoint, before, minute in asked:
        (event,) = door.events_of(tenant)
        check_counts(cell, event, engine)
        cost = total(rate(world.price(), event.counts))
        assert event.quoted_pico == cost <= event.reserved_pico, cell
        wait_until(lambda: tenant.free() == before - cost, f"settlement of {cell}")  # noqa: B023  # called here
        assert tenant.reserved() == tenant.concurrent() == 0, cell
        counted = [event.counts[meter] for meter in ("in_hit", "in_miss", "out")]
        limiter = [tokens(world, tenant.record.key_id, what, minute) for what in ("cached", "uncached", "generated")]
        assert limiter == counted, cell
        assert tokens(world, endpoint, "reserved", minute) == sum(counted), cell
        assert spent(world, tenant.record.key_id) == cost, cell


def check_counts(cell: Cell, event: UsageEvent, engine: Engine) -> None:
    """What the event says of this cell."""
    hit, miss, out = (event.counts[meter] for meter in ("in_hit", "in_miss", "out"))
    if not cell.abort:
        known = cell.cached if cell.cached <= PROMPT else 0
        assert (hit, miss, out) == (known, PROMPT - known, OUT), cell
        assert (event.finish, event.provenance) == (cell.plan().finish, "engine_final"), cell
        assert event.engine_usage is not None, cell
        assert event.engine_usage["completion_tokens"] == OUT, cell
    elif cell.stream:
        assert (event.finish, hit, miss) == ("abort_client", 0, PROMPT), cell
        assert 0 < out <= engine.tokens_made, cell
    else:
        assert (event.finish, hit, miss, out) == ("abort_client", 0, 0, 0), cell


def tokens(world: World, owner: str, what: str, minute: int) -> int:
    """What was counted in that minute or, where the request came just after it, in the next."""
    return sum(int(world.redis.get(wire.tpm(owner, what, at)) or 0) for at in (minute, minute + 1))
