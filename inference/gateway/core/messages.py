"""A request in Anthropic's Messages shape, and the chat completion that asks the engine for the same.

The engine has such a route itself, but says how many tokens it made only in its last event: an answer that is
cut short would go uncounted. So it is asked for a chat completion, which counts along.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from inference.gateway.core.members import Unreadable, read, splice
from inference.gateway.core.request import Call, Usage, bad, check_names, check_size, flag, text_of, whole, words
from kernel.problems import INVALID_JSON, Problem

_COUNTED = words("model messages system tools tool_choice thinking output_config cache_control")
_ALLOWED = _COUNTED | words(
    "max_tokens stream temperature top_p top_k stop_sequences metadata service_tier inference_geo"
)
_COUNTABLE = _ALLOWED - words("stream")
_SAME = ("temperature", "top_p", "top_k")
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_SUPPORTED = "text, thinking, redacted_thinking, tool_use and tool_result"

Json = dict[str, Any]


def parse(raw: bytes) -> Call:
    """Check a body and turn it into a chat completion's. Problem names the field and what to send instead."""
    body, _ = _read(raw)
    check_names(body, _ALLOWED)
    max_tokens = whole(body, "max_tokens")
    if max_tokens is None:
        raise bad("max_tokens", "max_tokens is required on this route: the most tokens that the answer may have.")
    stream = flag(body, "stream")
    chat = {
        "model": text_of(body, "model"),
        "messages": _messages(body),
        "max_tokens": max_tokens,
        **({"stream": True} if stream else {}),
        **{name: body[name] for name in _SAME if body.get(name) is not None},
        **_stop(body),
        **_tools(body),
        **_thinking(body, max_tokens),
        **_output(body),
    }
    return Call(
        raw=orjson.dumps(chat),
        body=chat,
        spans=None,
        model=chat["model"],
        stream=stream,
        usage=Usage.FINAL,
        prompts=1,
        n=1,
        max_tokens=max_tokens,
        user=_user(body),
    )


def parse_count(raw: bytes) -> tuple[str, Callable[[str], bytes]]:
    """The model that a count is asked for, and the client's own bytes with another model's name in them."""
    body, spans = _read(raw)
    check_names(body, _COUNTABLE)
    model = text_of(body, "model")
    _messages(body)
    _tools(body)
    return model, lambda served: splice(raw, [(spans["model"], orjson.dumps(served))], {})


def _read(raw: bytes) -> tuple[Json, Mapping[str, Any]]:
    try:
        return read(raw)
    except Unreadable as refusal:
        raise Problem(INVALID_JSON, str(refusal)) from None


def _messages(body: Json) -> list[Json]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages", "`messages` is a list of at least one message.")
    system = "".join(block["text"] for block in _blocks(body.get("system") or [], "system", {"text"}))
    chat: list[Json] = [{"role": "system", "content": system}] if system else []
    for number, message in enumerate(messages):
        chat += _message(message, f"messages.{number}")
    return chat


def _message(message: object, where: str) -> Iterator[Json]:
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if role == "user":
        blocks = _blocks(content, f"{where}.content", {"text", "tool_result"})
        for block in blocks:
            if block["type"] == "tool_result":
                yield _tool_result(block, where)
        texts = [block for block in blocks if block["type"] == "text"]
        if texts:
            yield {"role": "user", "content": _texts(texts)}
    elif role == "assistant":
        kinds = {"text", "thinking", "redacted_thinking", "tool_use"}
        yield _assistant(_blocks(content, f"{where}.content", kinds))
    else:
        raise bad(f"{where}.role", "A message's role is user or assistant; a system prompt goes in `system`.")


def _assistant(blocks: Sequence[Json]) -> Json:
    message: Json = {"role": "assistant"}
    thoughts = "".join(str(block.get("thinking", "")) for block in blocks if block["type"] == "thinking")
    if thoughts:
        message["reasoning"] = thoughts
    texts = [block for block in blocks if block["type"] == "text"]
    message["content"] = _texts(texts) if texts else ""
    calls = [block for block in blocks if block["type"] == "tool_use"]
    if calls:
        message["tool_calls"] = [_tool_call(call) for call in calls]
    return message


def _tool_call(block: Json) -> Json:
    arguments = orjson.dumps(block.get("input") or {}).decode()
    function = {"name": str(block.get("name", "")), "arguments": arguments}
    return {"id": str(block.get("id", "")), "type": "function", "function": function}


def _tool_result(block: Json, where: str) -> Json:
    parts = _blocks(block.get("content") or [], f"{where}.content.content", {"text"})
    text = "\n".join(part["text"] for part in parts)
    return {"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": text}


def _texts(blocks: Sequence[Json]) -> str | list[Json]:
    """One text as it is; several as the parts that they are, which the model's template joins."""
    if len(blocks) == 1:
        return str(blocks[0]["text"])
    return [{"type": "text", "text": block["text"]} for block in blocks]


def _blocks(content: object, where: str, kinds: set[str]) -> list[Json]:
    """Content as blocks of these kinds; a string is one block of text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise bad(where, f"`{where}` is a string or a list of content blocks.")
    for block in content:
        kind = _type(block)
        if kind not in kinds:
            raise bad(
                where,
                f"`{where}` holds a block of type {kind[:40]!r}; {_SUPPORTED} are understood, each in its place.",
            )
        if kind == "text" and not isinstance(block.get("text"), str):
            raise bad(where, f"`{where}` holds a text block without text.")
    return content


def _type(value: object) -> str:
    """An object's `type`; "" where it has none that is a string."""
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else ""


def _stop(body: Json) -> Json:
    stop = body.get("stop_sequences")
    if stop is None:
        return {}
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        raise bad("stop_sequences", "`stop_sequences` is a list of strings.")
    return {"stop": stop} if stop else {}


def _tools(body: Json) -> Json:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if tools is None:
        return {}
    if not isinstance(tools, list):
        raise bad("tools", "`tools` is a list.")
    chat: Json = {"tools": [_tool(tool) for tool in tools]}
    if choice is None:
        return chat
    kind = _type(choice)
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": str(choice.get("name", ""))}}
    elif kind in _TOOL_CHOICES:
        chat["tool_choice"] = _TOOL_CHOICES[kind]
    else:
        raise bad("tool_choice", "`tool_choice` has the type auto, any, none or tool.")
    if flag(choice, "disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    return chat


def _tool(tool: object) -> Json:
    if not isinstance(tool, dict) or tool.get("type") not in (None, "custom") or "input_schema" not in tool:
        raise bad("tools", "A tool has a name and an input_schema; tools that run on the server do not exist here.")
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool["input_schema"]}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _thinking(body: Json, max_tokens: int) -> Json:
    thinking = body.get("thinking")
    if thinking is None:
        return {}
    kind = _type(thinking)
    if kind == "enabled":
        budget = whole(thinking, "budget_tokens")
        if budget is None or budget >= max_tokens:
            raise bad("thinking", "`thinking.budget_tokens` is a whole number below max_tokens.")
        return {"thinking_token_budget": budget}
    if kind == "disabled":
        return {"reasoning_effort": "none"}
    if kind == "adaptive":
        return {}
    raise bad("thinking", "`thinking` has the type enabled, disabled or adaptive.")


def _output(body: Json) -> Json:
    config = body.get("output_config")
    if config is None:
        return {}
    if not isinstance(config, dict) or config.keys() - {"effort", "format"}:
        raise bad("output_config", "`output_config` holds effort and format, no more.")
    chat: Json = {}
    if config.get("effort") is not None:
        chat["reasoning_effort"] = config["effort"]
    shape = config.get("format")
    if shape is not None:
        if not isinstance(shape, dict) or shape.get("type") != "json_schema" or "schema" not in shape:
            raise bad("output_config", "`output_config.format` has the type json_schema and a schema.")
        check_size("output_config", shape)
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": shape["schema"]},
        }
    return chat


def _user(body: Json) -> str:
    metadata = body.get("metadata")
    if metadata is None:
        return ""
    user = metadata.get("user_id") if isinstance(metadata, dict) else 0
    if user is not None and not isinstance(user, str):
        raise bad("metadata", "`metadata` is an object whose user_id is a string.")
    return user or ""
