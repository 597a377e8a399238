"""The playground's stream: the browser's question to the gateway under the member's own key, the answer back.

No key is kept here, and what is asked or answered is neither logged nor stored.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from django.conf import settings
from django.utils.translation import gettext as _

from controlplane.console.sentences import told

ALLOWED = ("model", "messages", "max_tokens", "temperature")
TIMEOUT = httpx2.Timeout(300, connect=5)


def question(payload: Any) -> bytes:
    """The completion request: the fields that the page may set, streamed, with usage at the end.

    TypeError for anything but an object; ValueError and RecursionError for one that is no good JSON.
    """
    if not isinstance(payload, dict):
        raise TypeError("expected an object")
    chosen = {name: payload[name] for name in ALLOWED if name in payload}
    asked = chosen | {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked, ensure_ascii=False, allow_nan=False).encode()


async def relay(authorization: str, body: bytes) -> AsyncIterator[bytes]:
    """Server-sent events of the gateway, byte for byte; a refusal arrives as one event with its error object.

    When the browser leaves, this generator is closed and the gateway sees the hang-up at once.
    """
    url = f"{settings.GATEWAY_PRIVATE_URL}/v1/chat/completions"
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    try:
        async with (
            httpx2.AsyncClient(timeout=TIMEOUT, trust_env=False) as client,
            client.stream("POST", url, content=body, headers=headers) as answer,
        ):
            if answer.status_code == httpx2.codes.OK:
                async for chunk in answer.aiter_raw():
                    yield chunk
            else:
                yield _event(_error(await answer.aread()))
    except httpx2.HTTPError:
        yield _event(_message(_("The gateway does not answer. Your endpoint is untouched; try again in a moment.")))


def _error(raw: bytes) -> dict[str, Any]:
    try:
        error = json.loads(raw)["error"]
    except (ValueError, KeyError, TypeError):
        return _message(_("The gateway refused the request without saying why."))
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        error["message"] = told(error["message"])
    return {"error": error}


def _message(text: str) -> dict[str, Any]:
    return {"error": {"message": text}}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"
