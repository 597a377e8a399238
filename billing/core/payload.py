"""What a journal record holds becomes a usage event, or is refused with the sentence that stands in quarantine."""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from billing.core.judge import Refused
from kernel.money import MINOR_DIGITS
from kernel.usage import UsageEvent

SMALL, INTEGER = 2**15, 2**31
MAX_TEXT = 1000
MAX_PICO = 10**38
# Ten thousand years of milliseconds are more than a datetime holds.
MAX_ID_MS = 10**14


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and "\x00" not in value


def _whole(value: Any, *, below: int) -> bool:
    return type(value) is int and 0 <= value < below


def _pico(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdecimal() and int(value[:40]) < MAX_PICO


def _instant(value: Any) -> bool:
    at = datetime.fromisoformat(value)
    return at.tzinfo is not None and 2000 <= at.year < 3000


def _counts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(count) is int for count in value.values())


def _id(value: Any) -> bool:
    return int(value.replace("-", ""), 16) >> 80 < MAX_ID_MS


_Test = Callable[[Any], bool]
FIELDS: dict[str, _Test] = {
    "event_id": _id,
    "currency": MINOR_DIGITS.__contains__,
    "counts": _counts,
    "attempt": partial(_whole, below=SMALL),
    "waste": partial(_whole, below=INTEGER),
    **dict.fromkeys(("started_at", "ended_at"), _instant),
    **dict.fromkeys(("quoted_pico", "reserved_pico"), _pico),
    **dict.fromkeys(("source", "kind", "sku", "region", "provenance", "finish", "endpoint_id", "deployment_id"), _text),
}
OPTIONAL: dict[str, _Test] = {
    "purse": _text,
    "accelerator": _text,
    "generation": partial(_whole, below=INTEGER),
    "accelerator_count": partial(_whole, below=INTEGER),
    "engine_usage": lambda value: isinstance(value, Mapping),
}


def parse(payload: Any) -> UsageEvent:
    """The event in a record. Refused for whatever else JSON can hold."""
    if not isinstance(payload, Mapping):
        raise Refused(f"malformed: {type(payload).__name__} is no event")
    try:
        orjson.dumps(payload)  # lone surrogates and integers beyond 64 bits have no place in any column
        for name, holds in FIELDS.items():
            _require(name, payload[name], holds)
        for name, holds in OPTIONAL.items():
            if payload[name] is not None:
                _require(name, payload[name], holds)
        _require("end_user", payload.get("end_user", ""), _text)
        return UsageEvent.from_json(payload)
    except Refused:
        raise
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Refused(f"malformed: {error!r}") from error


def _require(name: str, value: Any, holds: _Test) -> None:
    if not holds(value):
        raise Refused(f"malformed: {name} is {repr(value)[:100]}")
