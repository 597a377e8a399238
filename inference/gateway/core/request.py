"""A completion request: what the body may hold, how large it can get, and the bytes that go to the engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson

from inference.gateway.core.members import Span, Unreadable, read, read_plain, splice
from kernel.problems import INVALID_JSON, INVALID_PARAMETER, RESERVED_PARAMETER, Problem

MAX_ANSWERS = 16
MAX_LOGPROBS = 20
MAX_SHAPE_BYTES = 64 << 10  # of a JSON schema or a list of choices, which the engine compiles
DEFAULT_MAX_TOKENS = 4096
BEGINNING_BYTES = 1024
TEMPLATE_TOKENS = 512  # what a chat template may add beyond the bytes of the body


def words(text: str) -> frozenset[str]:
    """A set of names, written in one line."""
    return frozenset(text.split())


_SAMPLING = words(
    "model stream stream_options max_tokens n temperature top_p top_k min_p stop seed presence_penalty "
    "frequency_penalty repetition_penalty logit_bias logprobs user min_tokens ignore_eos stop_token_ids "
    "include_stop_str_in_output skip_special_tokens spaces_between_special_tokens response_format "
    "structured_outputs metadata store service_tier"
)
_CHAT = _SAMPLING | words(
    "messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls reasoning_effort "
    "include_reasoning chat_template_kwargs"
)
_TEXT = _SAMPLING | words("prompt suffix echo")
_RESERVED = words(
    "cache_salt priority kv_transfer_params ec_transfer_params request_id data_parallel_rank chat_template "
    "add_generation_prompt prompt_embeds vllm_xargs logits_processors mm_processor_kwargs use_beam_search "
    "best_of truncate_prompt_tokens prompt_logprobs return_token_ids return_tokens_as_token_ids"
)


_COUNTING = {"include_usage": True, "continuous_usage_stats": True}


class Usage(Enum):
    """Where the client wants `usage` in a stream: nowhere, in a last event, in every event."""

    NONE = "none"
    FINAL = "final"
    CONTINUOUS = "continuous"


@dataclass(slots=True)
class Call:
    """A body that passed the checks. `prompts` × `n` answers come back; `max_tokens` is per answer.

    `user` is the client's name of its end user.

    `spans` says where its members lie; None where `raw` is what orjson writes for `body`.
    """

    raw: bytes
    body: Mapping[str, Any]
    spans: Mapping[str, Span] | None
    model: str
    stream: bool
    usage: Usage
    prompts: int
    n: int
    max_tokens: int | None
    user: str = ""

    @property
    def answers(self) -> int:
        """How many answers the engine writes."""
        return self.prompts * self.n


@dataclass(slots=True)
class Size:
    """Upper bounds: `prompt_tokens` of the whole request, `max_tokens` of each answer."""

    prompt_tokens: int
    max_tokens: int


def parse(raw: bytes, *, chat: bool) -> Call:
    """Check a body. Problem names the field, the limit and what to send instead."""
    spans: Mapping[str, Span] | None = None
    body = read_plain(raw)
    if body is None:
        try:
            body, spans = read(raw)
        except Unreadable as refusal:
            raise Problem(INVALID_JSON, str(refusal)) from None
    check_names(body, _CHAT if chat else _TEXT)
    _check_shapes(body)
    model = text_of(body, "model")
    stream = flag(body, "stream")
    return Call(
        raw=raw,
        body=body,
        spans=spans,
        model=model,
        stream=stream,
        usage=_usage(body, stream),
        prompts=_messages(body) if chat else _prompts(body),
        n=whole(body, "n", most=MAX_ANSWERS) or 1,
        max_tokens=_max_tokens(body),
        user=_user(body),
    )


def size(call: Call, max_model_len: int) -> Size:
    """Bounds for this model: a byte-level tokenizer never makes more tokens than there are bytes.

    Problem where `max_tokens` is longer than the context or the answers are too many.
    """
    if call.answers > MAX_ANSWERS:
        raise bad("n", f"prompts × n is {call.answers}; at most {MAX_ANSWERS} answers come from one request.")
    if call.max_tokens is not None and call.max_tokens > max_model_len:
        raise bad(
            "max_tokens",
            f"max_tokens is {call.max_tokens}; the model's context is {max_model_len} tokens; lower it.",
        )
    bound = len(call.raw) + TEMPLATE_TOKENS
    room = max(max_model_len - bound, max_model_len // 4)
    return Size(
        prompt_tokens=min(bound, max_model_len * call.prompts),
        max_tokens=call.max_tokens or min(room, DEFAULT_MAX_TOKENS),
    )


def beginning(call: Call) -> bytes:
    """What requests with the same prompt template have in common: the head of the first message or of the prompt."""
    first = call.body["messages"][0] if "messages" in call.body else call.body["prompt"]
    return orjson.dumps(first)[:BEGINNING_BYTES]


def for_engine(call: Call, *, served_name: str, max_tokens: int, cache_salt: str | None) -> bytes:
    """The client's own bytes with the platform's values spliced in."""
    ours: dict[str, Any] = {"model": served_name}
    if call.max_tokens is None:
        ours["max_tokens"] = max_tokens
    if call.stream:
        ours["stream_options"] = _COUNTING
    if cache_salt is not None:
        ours["cache_salt"] = cache_salt
    if call.spans is None:
        added = {name: value for name, value in ours.items() if name not in call.body}
        return orjson.dumps({**added, **call.body, **ours})
    written = {name: orjson.dumps(value) for name, value in ours.items()}
    edits = [(call.spans[name], value) for name, value in written.items() if name in call.spans]
    return splice(call.raw, edits, {name: value for name, value in written.items() if name not in call.spans})


def bad(param: str, sentence: str) -> Problem:
    """A parameter is not acceptable: which, and what to send instead."""
    return Problem(INVALID_PARAMETER, sentence, param=param)


def check_names(body: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Problem names the first member that the platform keeps to itself or that the route does not know."""
    if body.keys() <= allowed:
        return
    for name in body:
        if name in _RESERVED:
            raise Problem(
                RESERVED_PARAMETER,
                f"`{name}` is set by the platform; remove it from the request.",
                param=name,
            )
        if name not in allowed:
            raise bad(name[:100], f"`{name[:100]}` is not a parameter of this route; remove it.")


def check_size(name: str, shape: object) -> None:
    """What describes an answer's shape is compiled by the engine before its first token, so it is bounded."""
    if shape is not None and len(orjson.dumps(shape)) > MAX_SHAPE_BYTES:
        raise bad(name, f"`{name}` is at most {MAX_SHAPE_BYTES} bytes.")


def text_of(body: Mapping[str, Any], name: str) -> str:
    """A member that is a string and not empty."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise bad(name, f"`{name}` is a string that is not empty.")
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A member that is true or false; false where absent."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(name, f"`{name}` is true or false.")
    return bool(value)


def _user(body: Mapping[str, Any]) -> str:
    user = body.get("user")
    if user is not None and not isinstance(user, str):
        raise bad("user", "`user` is a string.")
    return user or ""


def whole(body: Mapping[str, Any], name: str, *, most: int | None = None) -> int | None:
    """A member that is a whole number from 1 to `most`; None where absent."""
    value = body.get(name)
    if value is None:
        return None
    limit = f" and at most {most}" if most else ""
    if type(value) is not int or value < 1 or (most and value > most):
        raise bad(name, f"`{name}` is a whole number, at least 1{limit}.")
    return value


def _check_shapes(body: Mapping[str, Any]) -> None:
    """What makes an engine build tables before its first token: bounded, and no language that can be a bomb."""
    for name in ("logprobs", "top_logprobs"):
        value = body.get(name)
        if type(value) is int and value > MAX_LOGPROBS:
            raise bad(name, f"`{name}` is at most {MAX_LOGPROBS}.")
    structured = body.get("structured_outputs")
    if isinstance(structured, dict) and structured.keys() - {"json", "json_object", "choice"}:
        raise bad("structured_outputs", "structured_outputs holds json, json_object or choice, no regex or grammar.")
    for name in ("structured_outputs", "response_format"):
        check_size(name, body.get(name))


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    """The engine lets `max_completion_tokens` win; two different figures are refused instead."""
    older, newer = whole(body, "max_tokens"), whole(body, "max_completion_tokens")
    if older is not None and newer is not None and older != newer:
        raise bad("max_tokens", "max_tokens and max_completion_tokens differ; send one of them.")
    return newer if newer is not None else older


def _usage(body: Mapping[str, Any], stream: bool) -> Usage:
    options = body.get("stream_options")
    if options is None:
        return Usage.NONE
    if not stream:
        raise bad("stream_options", "stream_options goes with `stream`: true.")
    if not isinstance(options, dict) or options.keys() - {"include_usage", "continuous_usage_stats"}:
        raise bad("stream_options", "stream_options holds include_usage and continuous_usage_stats, no more.")
    if not flag(options, "include_usage"):
        return Usage.NONE
    return Usage.CONTINUOUS if flag(options, "continuous_usage_stats") else Usage.FINAL


def _messages(body: Mapping[str, Any]) -> int:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages", "`messages` is a list of at least one message.")
    return 1


def _prompts(body: Mapping[str, Any]) -> int:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return 1
    if not isinstance(prompt, list) or not prompt:
        raise bad("prompt", "`prompt` is a string, a list of strings, or token ids.")
    return len(prompt) if isinstance(prompt[0], str | list) else 1
