"""What an engine's refusal or failure means to the client: its own mistake passes on, ours does not."""

from collections.abc import Mapping
from typing import Any

import orjson

from kernel.problems import (
    CONTEXT_LENGTH_EXCEEDED,
    ENGINE_ERROR,
    INVALID_API_KEY,
    INVALID_PARAMETER,
    NO_REPLICA_READY,
    UNAVAILABLE,
    Problem,
)

_BUSY = frozenset({429, 503})


def refusal(status: int, body: bytes, *, max_model_len: int) -> Problem:
    """An error status with vLLM's error object."""
    error = _error(body)
    message = str(error.get("message") or "")
    if status == 400 and ("maximum context length" in message or error.get("param") == "input_tokens"):
        return Problem(
            CONTEXT_LENGTH_EXCEEDED,
            f"The prompt does not fit the model's context of {max_model_len} tokens; shorten it.",
            param="messages",
        )
    if status in (400, 422):
        param = error.get("param")
        return Problem(
            INVALID_PARAMETER,
            message or "The engine refused a parameter.",
            param=param if isinstance(param, str) else None,
        )
    return failure({"code": status})


def failure(error: Mapping[str, Any]) -> Problem:
    """An error event inside an answer, or an answer that broke off (an empty error)."""
    if error.get("code") in _BUSY:
        return Problem(UNAVAILABLE, "Every replica is at its capacity; retry in a moment.", retry_after_s=1)
    return Problem(ENGINE_ERROR, "The engine failed while it worked on this request; retry.", retry_after_s=1)


def unreachable() -> Problem:
    """No replica accepted the connection."""
    return Problem(NO_REPLICA_READY, "The engine cannot be reached; retry in a moment.", retry_after_s=5)


def cut() -> Problem:
    """We ended the answer."""
    return Problem(UNAVAILABLE, "The answer was cut short by its time limit or by a restart; retry.", retry_after_s=1)


def revoked() -> Problem:
    """We ended the answer with its key."""
    return Problem(INVALID_API_KEY, "The API key was revoked, and what ran under it was ended.")


def _error(body: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}
