"""What is billed against what a real engine itself has counted, over a mixture of everything that clients do."""

import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3

from tests.scenarios.conftest import Moorage
from tests.scenarios.test_shared_endpoint import engine_counters, new_tenant
from tests.services import soak, wait_until

pytestmark = pytest.mark.engine
log = logging.getLogger(__name__)

EVENTS = """
SELECT subject_id::text, (counts ->> 'in_hit')::int, (counts ->> 'in_miss')::int,
  (counts ->> 'out')::int + COALESCE((counts ->> 'reasoning')::int, 0), waste, finish
FROM usage_event WHERE kind = 'tokens' AND started_at >= to_timestamp(%s)
"""
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
SCRAPE_S = 20  # the engines' counters are read every fifteen seconds
PREFIX = "the harbour and the sea and the ships that lie at anchor " * 30

PIECE = re.compile(rb'"(?:content|reasoning|text|thinking)":"[^"]')
Ask = tuple[str, dict[str, Any]]


def words(chance: random.Random, count: int) -> str:
    return " ".join(f"word{chance.randrange(10_000)}" for _ in range(count))


def chat(chance: random.Random) -> Ask:
    messages = [{"role": "user", "content": words(chance, chance.randint(1, 60))}]
    return "/v1/chat/completions", {"messages": messages, "max_tokens": chance.randint(1, 40)}


def cached(chance: random.Random) -> Ask:
    path, body = chat(chance)
    return path, {**body, "messages": [{"role": "user", "content": PREFIX + words(chance, 3)}]}


def several(chance: random.Random) -> Ask:
    path, body = chat(chance)
    return path, {**body, "n": chance.randint(2, 4)}


def tools(chance: random.Random) -> Ask:
    path, body = chat(chance)
    return path, {**body, "tools": TOOLS, "tool_choice": "none"}  # this recipe has no parser for calls


def text(chance: random.Random) -> Ask:
    prompt: Any = words(chance, 20)
    if chance.random() < 0.5:
        prompt = [words(chance, 5), words(chance, 9)]
    return "/v1/completions", {"prompt": prompt, "max_tokens": chance.randint(1, 40)}


def message(chance: random.Random) -> Ask:
    _, body = chat(chance)
    return "/v1/messages", {**body, "system": "be brief"}


def too_long(chance: random.Random) -> Ask:
    return "/v1/completions", {"prompt": "harbour " * 5000, "max_tokens": 4}


def malformed(chance: random.Random) -> Ask:
    path, body = chat(chance)
    return path, {**body, "temperature": -3}


KINDS: tuple[Callable[[random.Random], Ask], ...] = (
    *(chat, chat, cached, cached, several, tools, text, message, message),
    *(too_long, malformed),
)
REFUSED = (too_long, malformed)


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one request: `status` is None where the client left, `request_id` where it left before a head.

    `text` is what was read of the answer.
    """

    kind: str
    status: int | None
    request_id: str | None
    n: int
    text: bytes = b""

    @property
    def pieces(self) -> int:
        """Whole pieces of a stream with text in them; each is at least a token."""
        return len(PIECE.findall(self.text[: self.text.rfind(b"\n\n") + 1]))


def send(moorage: Moorage, key: str, model: str, seed: int, *, aborts: bool) -> Sent:
    """One request of the mixture."""
    chance = random.Random(seed)
    kind = chance.choice(KINDS)
    path, body = kind(chance)
    stream = chance.random() < 0.6
    if stream and "/messages" not in path and chance.random() < 0.6:
        body["stream_options"] = chance.choice([{}, {"include_usage": False}, {"include_usage": True}])
    leaves = aborts and chance.random() < 0.4
    if leaves:
        body |= {"max_tokens": 600}
    n = body.get("n", 1)
    try:
        answer = moorage.http.request(
            "POST",
            moorage.gateway + path,
            json={"model": model, **body, "stream": stream},
            headers={"Authorization": f"Bearer {key}"},
            preload_content=False,
            timeout=urllib3.Timeout(connect=5, read=chance.uniform(0.02, 0.5) if leaves else 120),
        )
    except urllib3.exceptions.TimeoutError:
        assert leaves
        return Sent(kind.__name__, None, None, n)
    if answer.status == 503:  # the lender was slow: nothing was asked of an engine
        answer.drain_conn()
        time.sleep(0.5)
        return send(moorage, key, model, seed, aborts=aborts)
    assert (answer.status, kind in REFUSED) in ((200, False), (400, True)), answer.data
    request_id, text = answer.headers["x-request-id"], b""
    wanted = chance.randint(1, 20_000) if leaves and stream else 1 << 30
    whole = False
    try:
        while len(text) < wanted and not whole:
            piece = answer.read(64)
            text, whole = text + piece, not piece
    except urllib3.exceptions.TimeoutError:
        assert leaves
    if whole:
        answer.release_conn()
        return Sent(kind.__name__, answer.status, request_id, n, text)
    answer.close()
    return Sent(kind.__name__, None, request_id, n, text)


@dataclass(frozen=True, slots=True)
class Window:
    """Sums over a quiet engine's window. The engine counts a prompt once for each of its `n` answers."""

    sent: list[Sent]
    billed: dict[str, int]  # output tokens by request
    answered: int
    events: int
    hit: int
    prompt: int
    prompt_times_n: int
    out: int
    waste: int
    aborted: int
    engine_prompt: int
    engine_out: int
    engine_hit: int


def payer(moorage: Moorage, model: str) -> str:
    """A key that no limit stops, whose money is at the gateway: a first request went through."""
    _, key = new_tenant(moorage, 10**15, rpm=1_000_000)
    wait_until(lambda: moorage.chat(model, key=key).status == 200, "money at the gateway")
    return key


def mixture(moorage: Moorage, model: str, key: str, count: int, *, seed: int, aborts: bool) -> Window:
    """Send so many requests, eight at a time; what their events say and what the engine counted."""
    wait_until(lambda: quiet(moorage, model), "a quiet engine", 120)
    began_s, before = time.time(), engine_counters(moorage, model)
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda number: send(moorage, key, model, seed + number, aborts=aborts), range(count)))
    wait_until(lambda: quiet(moorage, model), "a quiet engine", 120)
    after = engine_counters(moorage, model)
    begun = sum(one.status != 400 and one.request_id is not None for one in sent)
    wait_until(lambda: len(moorage.query(EVENTS, began_s)) >= begun, "an event of every answer that began", 60)
    events = moorage.query(EVENTS, began_s)
    times = {one.request_id: one.n for one in sent}
    return Window(
        sent=sent,
        billed={request_id: out for request_id, _, _, out, _, _ in events},
        answered=sum(one.status == 200 for one in sent),
        events=len(events),
        hit=sum(hit for _, hit, *_ in events),
        prompt=sum(hit + miss for _, hit, miss, *_ in events),
        prompt_times_n=sum((hit + miss) * times.get(request_id, 1) for request_id, hit, miss, *_ in events),
        out=sum(out for *_, out, _, _ in events),
        waste=sum(waste for *_, waste, _ in events),
        aborted=sum(finish == "abort_client" for *_, finish in events),
        engine_prompt=after[0] - before[0],
        engine_out=after[1] - before[1],
        engine_hit=after[2] - before[2],
    )


def quiet(moorage: Moorage, model: str) -> bool:
    """Whether the engine's counters stand still."""
    before = engine_counters(moorage, model)
    time.sleep(0.5)
    return engine_counters(moorage, model) == before


def scraped(moorage: Moorage, model: str) -> bool:
    """Whether the last scrape has seen what the engine counts now."""
    kept = moorage.query("SELECT value FROM engine_counter")
    return {int(value) for (value,) in kept} >= set(engine_counters(moorage, model)[:2])


def test_fault_27_a_prompt_never_seen_is_not_cached_and_a_repeat_is_in_whole_blocks(
    moorage: Moorage, shared: str
) -> None:
    prompt = words(random.Random(time.time_ns()), 250)

    def usage() -> Any:
        answer = moorage.chat(shared, messages=[{"role": "user", "content": prompt}])
        assert answer.status == 200
        return answer.body["usage"]

    first, second = usage(), usage()
    assert first["prompt_cache_hit_tokens"] == 0
    assert second["prompt_tokens"] == first["prompt_tokens"]
    assert second["prompt_cache_hit_tokens"] < second["prompt_tokens"]
    assert second["prompt_cache_hit_tokens"] % 16 == 0


def figures(found: Window) -> str:
    """Without the answers: what a run shows, and what a failure is about."""
    told = {name: getattr(found, name) for name in Window.__slots__ if name not in ("sent", "billed")}
    return json.dumps(told | {"kinds": Counter(one.kind for one in found.sent)})


@dataclass(frozen=True, slots=True)
class Listed:
    """Sums over the windows of `manage.py unbilled`, by meter, and the requests that it names."""

    made: Counter[str]
    billed: Counter[str]
    waste: int
    requests: set[str]


def listed(moorage: Moorage) -> Listed:
    """What the operator's list says since the installation began; every rest has a request beside it."""
    done = moorage.manage("unbilled", "--since", "2026-01-01T00:00:00+00:00")
    assert done.returncode == 0, done.stderr
    windows = [json.loads(line) for line in done.stdout.splitlines()]
    for window in windows:
        assert window["rest"] == window["made"] - window["billed"]
        assert window["requests"] or window["rest"] == 0 or window["meter"] == "prompt", window
    made, billed = Counter[str](), Counter[str]()
    for window in windows:
        made[window["meter"]] += window["made"]
        billed[window["meter"]] += window["billed"]
    waste = sum(window["waste"] for window in windows)
    return Listed(made, billed, waste, {one["request_id"] for window in windows for one in window["requests"]})


@pytest.mark.soak
def test_without_an_abort_billed_is_what_the_engine_counted(moorage: Moorage, shared: str) -> None:
    found = mixture(moorage, shared, payer(moorage, shared), soak(1000), seed=1, aborts=False)
    log.info(figures(found))
    assert {one.kind for one in found.sent} == {kind.__name__ for kind in KINDS}
    # An engine has no cache on a CPU without AMX; where it has one, the second prompt of a kind comes from it.
    assert (found.hit > 0) == (found.engine_hit > 0), figures(found)
    assert found.hit <= found.engine_hit, figures(found)
    assert any(b'"reasoning":"' in one.text for one in found.sent if one.status == 200)
    assert found.events == found.answered > 0, figures(found)
    assert (found.prompt_times_n, found.out) == (found.engine_prompt, found.engine_out), figures(found)
    assert found.waste == found.aborted == 0, figures(found)
    moorage.assert_books()


@pytest.mark.soak
def test_with_aborts_at_random_points_billed_is_never_more_than_the_engine_counted_and_the_rest_is_listed(
    moorage: Moorage, shared: str
) -> None:
    key = payer(moorage, shared)
    wait_until(lambda: quiet(moorage, shared), "a quiet engine", 120)
    wait_until(lambda: scraped(moorage, shared), "a list that reaches as far as the engine", 3 * SCRAPE_S)
    before = listed(moorage)
    found = mixture(moorage, shared, key, soak(1000), seed=100_000, aborts=True)
    log.info(figures(found))
    assert found.aborted > 0, figures(found)
    assert found.prompt <= found.prompt_times_n <= found.engine_prompt, figures(found)
    assert found.out + found.waste <= found.engine_out, figures(found)
    in_hand = [one for one in found.sent if one.request_id in found.billed]
    assert any(one.status is None and one.pieces for one in in_hand)
    assert all(one.pieces <= found.billed[str(one.request_id)] for one in in_hand)
    wait_until(lambda: scraped(moorage, shared), "a list that reaches as far as the engine", 3 * SCRAPE_S)
    after = listed(moorage)
    made = [after.made[meter] - before.made[meter] for meter in ("prompt", "generation")]
    assert made == [found.engine_prompt, found.engine_out]
    billed = [after.billed[meter] - before.billed[meter] for meter in ("prompt", "generation")]
    assert (*billed, after.waste - before.waste) == (found.prompt, found.out, found.waste)
    left = {request_id for request_id, *_, finish in moorage.query(EVENTS, 0) if finish == "abort_client"}
    assert left <= after.requests
    log.info("the list names %d requests", len(after.requests - before.requests))
    moorage.assert_books()


def test_a_counted_message_is_as_long_as_its_bill_says(moorage: Moorage, shared: str) -> None:
    ask = {
        "model": shared,
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
            {"role": "user", "content": [{"type": "text", "text": "and now"}, {"type": "text", "text": "this"}]},
        ],
    }
    counted = moorage.infer("/v1/messages/count_tokens", ask)
    answered = moorage.infer("/v1/messages", {**ask, "max_tokens": 3})
    assert (counted.status, answered.status) == (200, 200)
    usage = answered.body["usage"]
    assert counted.body["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
