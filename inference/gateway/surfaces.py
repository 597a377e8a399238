"""What differs between the routes that complete: how a body is read, and how an answer is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from inference.gateway.authn import MESSAGES
from inference.gateway.core import message_answer, messages, request, usage
from inference.gateway.core.usage import Counts
from inference.gateway.job import Job
from inference.gateway.message_relay import MessageRelay
from inference.gateway.relay import StreamRelay

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Surface:
    """`engine_path` is what the engine is asked; `answer` writes its whole answer, as parsed, for the client."""

    engine_path: str
    parse: Callable[[bytes], request.Call]
    relay: type[StreamRelay]
    answer: Callable[[bytes, Mapping[str, Any], Job, Counts], bytes]


def _openai(raw: bytes, parsed: Mapping[str, Any], job: Job, counts: Counts) -> bytes:
    told = usage.public(parsed["usage"], counts, job.cost(counts), job.grant.key.currency)
    return usage.replace(raw, parsed, told)


def _anthropic(raw: bytes, parsed: Mapping[str, Any], job: Job, counts: Counts) -> bytes:
    return message_answer.answer(
        parsed,
        model=job.call.model,
        counts=counts,
        cost_pico=job.cost(counts),
        currency=job.grant.key.currency,
    )


SURFACES = {
    CHAT: Surface(CHAT, partial(request.parse, chat=True), StreamRelay, _openai),
    TEXT: Surface(TEXT, partial(request.parse, chat=False), StreamRelay, _openai),
    MESSAGES: Surface(CHAT, messages.parse, MessageRelay, _anthropic),
}
