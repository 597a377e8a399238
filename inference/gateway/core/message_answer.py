"""A chat completion's answer in Anthropic's Messages shape, whole or as events.

Anthropic's `input_tokens` leave out what came from the cache. The engine tells the cached part with its last
count: `message_start` can only name the whole prompt, `message_delta` then says what it was made of.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from inference.gateway.core.usage import Counts
from kernel.money import to_string
from kernel.problems import Problem

STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}

Json = Mapping[str, Any]


def answer(chat: Json, *, model: str, counts: Counts, cost_pico: int, currency: str) -> bytes:
    """A whole chat completion as a message. KeyError, TypeError or IndexError where it is none."""
    choice = chat["choices"][0]
    message = choice["message"]
    content: list[Json] = []
    if message.get("reasoning"):
        content.append({"type": "thinking", "thinking": message["reasoning"], "signature": ""})
    if message.get("content"):
        content.append({"type": "text", "text": message["content"]})
    content += [_tool_use(call) for call in message.get("tool_calls") or ()]
    reason, sequence = _stop(choice, used_tool=any(block["type"] == "tool_use" for block in content))
    return orjson.dumps(
        {
            "id": chat["id"],
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage(counts, cost_pico, currency),
        }
    )


def usage(counts: Counts, cost_pico: int, currency: str) -> Json:
    """Tokens in Anthropic's words, and what they cost."""
    return {
        "input_tokens": counts.miss,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.hit,
        "output_tokens": counts.out,
        "cost": {"amount": to_string(cost_pico), "currency": currency},
    }


def error(problem: Problem) -> bytes:
    """The event that ends a stream which cannot go on."""
    return _event("error", problem.as_anthropic())


class Events:
    """The events of one message, out of the chunks of one streamed chat completion, in their order."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._started = False
        self._index = -1
        self._open = ""  # the kind of the content block that is open; a tool's with its number
        self._last: Json = {}
        self._used_tool = False

    def piece(self, chunk: Json, prompt_tokens: int) -> bytes:
        """What one chunk with a choice becomes: any number of events, also none."""
        choice = chunk["choices"][0]
        delta = choice.get("delta") or {}
        events = b"" if self._started else self._start(chunk["id"], prompt_tokens)
        if thought := delta.get("reasoning"):
            events += self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            events += self._delta({"type": "thinking_delta", "thinking": thought})
        if text := delta.get("content"):
            events += self._block("text", {"type": "text", "text": ""})
            events += self._delta({"type": "text_delta", "text": text})
        for call in delta.get("tool_calls") or ():
            events += self._call(call)
        if choice.get("finish_reason"):
            self._last = choice
        return events

    def end(self, counts: Counts, cost_pico: int, currency: str) -> bytes:
        """The events that close the message."""
        reason, sequence = _stop(self._last, used_tool=self._used_tool)
        delta = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage(counts, cost_pico, currency),
        }
        return self._close() + _event("message_delta", delta) + _event("message_stop", {"type": "message_stop"})

    def _start(self, id_: str, prompt_tokens: int) -> bytes:
        self._started = True
        message: dict[str, Any] = {
            "id": id_,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
        }
        return _event("message_start", {"type": "message_start", "message": message})

    def _call(self, call: Json) -> bytes:
        function = call.get("function") or {}
        events = b""
        if function.get("name"):
            self._used_tool = True
            block = {"type": "tool_use", "id": call.get("id") or "", "name": function["name"], "input": {}}
            events += self._block(f"tool_use {call.get('index', 0)}", block)
        if function.get("arguments"):
            events += self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})
        return events

    def _block(self, kind: str, block: Json) -> bytes:
        """Open a block, unless one of this kind is open."""
        if self._open == kind:
            return b""
        events = self._close()
        self._index, self._open = self._index + 1, kind
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return events + _event("content_block_start", start)

    def _delta(self, delta: Json) -> bytes:
        return _event("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", {"type": "content_block_stop", "index": self._index})


def _event(name: str, data: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


def _tool_use(call: Json) -> Json:
    """Arguments that are no JSON object are kept as text under one name: the caller must see what was written."""
    function = call["function"]
    try:
        given = orjson.loads(function.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        given = None
    arguments = given if isinstance(given, dict) else {"arguments": function.get("arguments")}
    return {"type": "tool_use", "id": call.get("id", ""), "name": function["name"], "input": arguments}


def _stop(choice: Json, *, used_tool: bool) -> tuple[str, str | None]:
    """Why it stopped. An engine says `stop` also where a tool that the caller named was called."""
    reason = choice.get("finish_reason")
    if reason == "stop":
        if used_tool:
            return "tool_use", None
        matched = choice.get("stop_reason")
        return ("stop_sequence", matched) if isinstance(matched, str) else ("end_turn", None)
    return STOP_REASONS.get(reason or "", "end_turn"), None
