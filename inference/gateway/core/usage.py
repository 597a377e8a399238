"""Token counts as the engine reports them: read, kept plausible, stripped from or written into its bytes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from kernel import pricing
from kernel.money import to_string

_NAME = b'"usage"'
_MEMBER = re.compile(rb',\s*"usage"\s*:\s*(null|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_LEAD = 16  # bytes before the name in which its comma may stand


@dataclass(slots=True)
class Counts:
    """Tokens of one request: prompt = hit + miss; `reasoning` is a part of `out`."""

    hit: int = 0
    miss: int = 0
    out: int = 0
    reasoning: int = 0

    @property
    def prompt(self) -> int:
        """All prompt tokens."""
        return self.hit + self.miss

    def meters(self) -> dict[str, int]:
        """Counts by meter name, as an event carries them."""
        if not self.reasoning:
            return {pricing.IN_HIT: self.hit, pricing.IN_MISS: self.miss, pricing.OUT: self.out}
        return {
            pricing.IN_HIT: self.hit,
            pricing.IN_MISS: self.miss,
            pricing.OUT: self.out - self.reasoning,
            pricing.REASONING: self.reasoning,
        }


class Running:
    """The running count of one request.

    While a stream runs the engine counts each choice by itself (and each prompt of several), without
    cache details; its last usage is the whole request's. A figure that is no count, shrinks, or passes what
    was asked for is not believed: the last good one stands and `clamped` says so.
    """

    __slots__ = (
        "_counts",
        "_max_tokens",
        "_most_out",
        "_most_prompt",
        "_n",
        "_one",
        "_only_prompt",
        "_out",
        "_prompt",
        "clamped",
        "final",
        "out",
    )

    def __init__(self, *, n: int, prompts: int, max_tokens: int, max_model_len: int) -> None:
        self._n, self._max_tokens = n, max_tokens
        self._one = n * prompts == 1
        self._only_prompt = b""  # tokens, once they are known, of the prompt of one answer
        self._most_out = n * prompts * max_tokens
        self._most_prompt = prompts * max_model_len
        self._out: dict[int, int] = {}
        self._prompt: dict[int, int] = {}
        self._counts = Counts()
        self.out = 0
        self.final: Mapping[str, Any] | None = None
        self.clamped = False

    @property
    def counts(self) -> Counts:
        """The count so far; `out` alone is its output tokens."""
        if self._counts.out != self.out:
            self._counts = Counts(self._counts.hit, self._counts.miss, self.out)
        return self._counts

    def follows(self, out: int, prompt: bytes, then: int) -> bool:
        """Whether the only answer, after `out` tokens, may have `then`; False where `chunk` must judge it.

        `prompt` is the prompt's count as the engine writes it.
        """
        return prompt == self._only_prompt and out <= then <= self._max_tokens

    def chunk(self, usage: Mapping[str, Any], index: int) -> None:
        """Usage that came with a piece of the choice `index`."""
        before = self.out if self._one else self._out.get(index, 0)
        out = self._plausible(usage.get("completion_tokens"), before, self._max_tokens)
        prompt = index // self._n
        self._out[index] = out
        self._prompt[prompt] = self._plausible(usage.get("prompt_tokens"), self._prompt.get(prompt, 0), None)
        if self._one and prompt == 0:
            self._only_prompt = b"%d" % self._prompt[0]
        self.out = min(sum(self._out.values()), self._most_out)
        self._counts = Counts(miss=min(sum(self._prompt.values()), self._most_prompt), out=self.out)

    def finish(self, usage: Mapping[str, Any]) -> None:
        """The engine's last usage, for the whole request."""
        prompt = self._plausible(usage.get("prompt_tokens"), self.counts.prompt, self._most_prompt)
        out = self._plausible(usage.get("completion_tokens"), self.counts.out, self._most_out)
        hit = self._plausible(_detail(usage, "prompt_tokens_details", "cached_tokens"), 0, prompt)
        reasoning = self._plausible(_detail(usage, "completion_tokens_details", "reasoning_tokens"), 0, out)
        self.out = out
        self._counts = Counts(hit=hit, miss=prompt - hit, out=out, reasoning=reasoning)
        self.final = numbers(usage)

    def _plausible(self, value: object, before: int, most: int | None) -> int:
        if type(value) is int and value >= before and (most is None or value <= most):
            return value
        self.clamped = True
        return before


def _detail(usage: Mapping[str, Any], group: str, name: str) -> object:
    """A member of one of usage's optional objects; 0 where it is absent or null."""
    details = usage.get(group)
    return (details.get(name) if isinstance(details, dict) else None) or 0


def numbers(usage: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's usage without anything that is not a number, an object of numbers or null."""
    kept: dict[str, Any] = {}
    for name, value in usage.items():
        if isinstance(value, dict):  # an abstract Mapping takes ten times as long to tell
            kept[name] = numbers(value)
        elif value is None or isinstance(value, int | float):
            kept[name] = value
    return kept


def public(usage: Mapping[str, Any], counts: Counts, cost_pico: int, currency: str) -> bytes:
    """The `usage` that a client gets: the engine's (OpenAI's fields), DeepSeek's cache split and the cost."""
    return orjson.dumps(
        {
            **usage,
            "prompt_cache_hit_tokens": counts.hit,
            "prompt_cache_miss_tokens": counts.miss,
            "cost": {"amount": to_string(cost_pico), "currency": currency},
        }
    )


def strip(raw: bytes, parsed: Mapping[str, Any]) -> bytes:
    """`raw` (the JSON of `parsed`, perhaps within an event) without its `usage` member."""
    return _replace(raw, parsed, None)


def replace(raw: bytes, parsed: Mapping[str, Any], usage: bytes) -> bytes:
    """`raw` with its `usage` member replaced by these bytes of JSON."""
    return _replace(raw, parsed, usage)


def _replace(raw: bytes, parsed: Mapping[str, Any], usage: bytes | None) -> bytes:
    """Text cannot be hit: within a string the quotes of the name would be escaped.

    A nested member of the same name is told apart by its value.
    """
    at = raw.rfind(_NAME)
    while at >= 0:
        member = _MEMBER.search(raw, max(0, at - _LEAD))
        if member and member.start() < at < member.start(1) and orjson.loads(member[1]) == parsed["usage"]:
            kept = b"" if usage is None else b',"usage":' + usage
            return raw[: member.start()] + kept + raw[member.end() :]
        at = raw.rfind(_NAME, 0, at)
    return _written_anew(raw, parsed, usage)


def _written_anew(raw: bytes, parsed: Mapping[str, Any], usage: bytes | None) -> bytes:
    """An engine that writes usage first or in another shape: the same values, our spelling."""
    body = {name: value for name, value in parsed.items() if name != "usage"}
    if usage is not None:
        body["usage"] = orjson.Fragment(usage)
    start, end = raw.index(b"{"), raw.rindex(b"}") + 1
    return raw[:start] + orjson.dumps(body) + raw[end:]
