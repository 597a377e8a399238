"""Where the members of a JSON object lie in its bytes: to splice values in, never to re-serialise."""

import re
from dataclasses import dataclass

import orjson

MAX_DEPTH = 64
MAX_TOKENS = 100_000

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"(\s*+:)?|[{}\[\]]', re.DOTALL)
_SCALAR = re.compile(rb"[^\s,}]+")
_SPACE = re.compile(rb"\s*")
_OPEN, _CLOSE = b"{[", b"}]"


class Unreadable(ValueError):
    """The sentence says what the bytes break: JSON itself, a limit, or the rule against repeated names."""


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open byte range of a value."""

    start: int
    end: int


def read(raw: bytes) -> tuple[dict[str, object], dict[str, Span]]:
    """The object and the span of each top-level value.

    Unreadable for what is no JSON object in UTF-8 (NaN and lone surrogates are not), repeats a name at any
    level, nests deeper than MAX_DEPTH, or holds more than MAX_TOKENS strings and brackets.
    """
    spans = _spans(raw)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"The body is not valid JSON: {error.msg} at byte {error.pos}.") from None
    if not isinstance(value, dict):
        raise Unreadable("The body must be a JSON object.")
    return value, spans


def read_plain(raw: bytes) -> dict[str, object] | None:
    """The object, where `raw` is exactly what orjson writes for it; None where `read` must look closer.

    Such bytes repeat no name, and writing a changed object is the same as splicing its bytes.
    """
    if len(raw) > MAX_TOKENS or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        return None
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and orjson.dumps(value) == raw else None


def splice(raw: bytes, edits: list[tuple[Span, bytes]], inserts: dict[str, bytes]) -> bytes:
    """`raw` with spans replaced and new members set in front; every other byte as it was.

    `raw` is an object with at least one member; edits do not overlap.
    """
    head = raw.index(b"{") + 1
    pieces = [raw[:head], *(b'"%s":%s,' % (name.encode(), value) for name, value in inserts.items())]
    position = head
    for span, value in sorted(edits, key=lambda edit: edit[0].start):
        pieces += (raw[position : span.start], value)
        position = span.end
    return b"".join((*pieces, raw[position:]))


def _spans(raw: bytes) -> dict[str, Span]:
    """Spans of the top-level values; right for valid JSON, harmless for anything else."""
    names: list[set[str]] = []  # of each object that is open, outermost first; empty for a list
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    current = ""
    for count, token in enumerate(_TOKEN.finditer(raw)):
        if count >= MAX_TOKENS:
            raise Unreadable(f"The body holds more than {MAX_TOKENS} strings and brackets.")
        first = raw[token.start()]
        if first in _OPEN:
            _deeper(names)
        elif first in _CLOSE:
            del names[-1:]
        elif token[1] is not None:
            name = _unrepeated(raw[token.start() : token.start(1)], names)
            if len(names) == 1:
                current, starts[name] = name, token.end()
            continue
        if len(names) == 1:
            ends[current] = token.end()
    return {name: _span(raw, start, ends.get(name)) for name, start in starts.items()}


def _deeper(names: list[set[str]]) -> None:
    if len(names) >= MAX_DEPTH:
        raise Unreadable(f"The body nests deeper than {MAX_DEPTH} levels.")
    names.append(set())


def _unrepeated(quoted: bytes, names: list[set[str]]) -> str:
    name = _name(quoted)
    if names:
        if name in names[-1]:
            raise Unreadable(f"The body names {name!r} twice in one object.")
        names[-1].add(name)
    return name


def _name(quoted: bytes) -> str:
    try:
        return str(orjson.loads(quoted))
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"The body is not valid JSON: {error.msg} in a name.") from None


def _span(raw: bytes, after_colon: int, end: int | None) -> Span:
    space = _SPACE.match(raw, after_colon)
    start = space.end() if space else after_colon
    if end is None:
        scalar = _SCALAR.match(raw, start)
        end = scalar.end() if scalar else start
    return Span(start, end)
