"""From an engine's answer to the client: what is read, what of it is written, and how it ended.

A relay is called back for every read of the engine's socket; nothing here waits. Bytes pass through, only the
`usage` member is taken out or completed. The terminal bytes are left to the caller, who owes a CLOSE first.
"""

import asyncio
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import orjson

from inference.gateway import http_head
from inference.gateway.core import sse, usage, usual
from inference.gateway.core.delivered import Delivered
from inference.gateway.core.request import Call, Usage
from inference.gateway.http_head import SIZES
from inference.gateway.server import Connection
from inference.gateway.upstream import EngineConnection
from kernel.problems import Problem

MAX_REFUSAL_BYTES = 64 << 10
MAX_ANSWER_BYTES = 64 << 20
PROGRESS_S = 1.5  # and a look or two later: never more than 2 s apart
PROGRESS_TOKENS = 512
_MARKS = 32
_END = usual.END + b"\r\n"
_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class End(Enum):
    """How an attempt ended."""

    COMPLETE = "complete"
    REFUSED = "refused"  # the engine answered with an error status
    FAILED = "failed"  # the engine broke off or said so inside the answer
    UNREACHABLE = "unreachable"
    GONE = "gone"  # the client hung up
    CUT = "cut"  # we ended it: too long, or draining
    REVOKED = "revoked"  # we ended it: its key was revoked, and its streams with it


class Relay:
    """One attempt. `end` is set once; after that nothing more is written."""

    __slots__ = ("_bytes", "_client", "_connection", "end", "error", "finish", "pieces", "running", "status")

    def __init__(self, client: Connection, running: usage.Running) -> None:
        self._client = client
        self._connection: EngineConnection | None = None
        self.running = running
        self.end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.finish = "stop"
        self.error: Mapping[str, Any] = {}
        self.pieces: list[bytes] = []
        self._bytes = 0

    def attach(self, connection: EngineConnection) -> None:
        """Tie the client to the engine's connection: backpressure and hang-up pass through."""
        self._connection = connection
        self._client.on_gone = lambda: self.stop(End.GONE)
        self._client.on_drained = connection.resume

    def stop(self, end: End) -> None:
        """End it from our side or the client's: the engine is left at once. Nothing where it has ended."""
        if self._connection is not None and not self.end.done():
            self._connection.abort()
        self._ended(end)

    def look(self, now: float) -> None:
        """Called a few times a second with the loop's time."""

    def head(self, status: int) -> None:
        """Sink: the status."""
        self.status = status

    def chunks(self, data: bytes) -> int:
        """Sink: nothing is passed on unread."""
        return 0

    def body(self, data: bytes) -> None:
        """Sink: bytes of an answer that is kept whole."""
        self._bytes += len(data)
        if self._bytes > (MAX_ANSWER_BYTES if self.status == 200 else MAX_REFUSAL_BYTES):
            self.stop(End.FAILED)
        else:
            self.pieces.append(data)

    def flush(self) -> None:
        """Sink: nothing is written before the answer is whole."""

    def ended(self) -> None:
        """Sink: the answer is whole."""
        self._ended(End.COMPLETE if self.status == 200 else End.REFUSED)

    def broke(self) -> None:
        """Sink: the engine broke off."""
        self._ended(End.FAILED)

    def _ended(self, end: End) -> None:
        self._client.on_gone = self._client.on_drained = None
        if not self.end.done():
            self.end.set_result(end)


class StreamRelay(Relay):
    """Server-sent events, written as they arrive from the first content on."""

    __slots__ = (
        "_batch",
        "_content",
        "_delivered",
        "_done",
        "_finished",
        "_framer",
        "_marks",
        "_progress",
        "_progress_due",
        "_progress_next",
        "_progress_out",
        "_strips",
        "_tells",
        "last",
    )

    def __init__(
        self,
        client: Connection,
        running: usage.Running,
        *,
        call: Call,
        progress: Callable[[int], None],
    ) -> None:
        super().__init__(client, running)
        self._framer = sse.Framer()
        self._tells = call.usage is not Usage.NONE
        self._strips = call.usage is not Usage.CONTINUOUS
        self._progress = progress
        self._progress_out, self._progress_next = 0, PROGRESS_TOKENS
        self._progress_due = 0.0
        self._delivered = Delivered()
        self._marks = self._delivered.marks
        self._batch: list[tuple[bytes, int]] = []  # chunks to write, and the count that is complete behind each
        self._content = False
        self._finished = self._done = False
        self.last: tuple[bytes, Mapping[str, Any]] | None = None

    def look(self, now: float) -> None:
        """Note progress every PROGRESS_S, where there is some."""
        if now >= self._progress_due:
            if self._progress_due and self.running.out > self._progress_out:
                self._note_progress()
            self._progress_due = now + PROGRESS_S

    def chunks(self, data: bytes) -> int:
        """Sink: chunks with one usual event each go on as they are, less their usage."""
        client, running = self._client, self.running
        if not client.started or self.error or self._framer.tail:
            return 0
        start, whole, out, offset, passed = 0, len(data), running.out, client.offset, []
        while start < whole and (found := usual.read_chunk(data, start)):
            size, event, prompt, text = found.groups()
            end, then = found.end(), int(text)
            if size != SIZES.get(end - start - len(size) - 2) or not running.follows(out, prompt, then):
                break
            chunk = SIZES[len(event) + 3] + event + _END if self._strips else found[0]
            start, out = end, then
            offset += len(chunk)
            passed.append(chunk)
            self._marks.append((offset - 2, out))
        if passed:
            running.out = out
            client.write(b"".join(passed))
            if client.blocked or len(self._marks) > _MARKS or out >= self._progress_next:
                self._written()
        return start

    def body(self, data: bytes) -> None:
        """Sink: bytes of events."""
        if self.status != 200:
            super().body(data)
            return
        try:
            for event in self._framer.feed(data):
                if self.error or not self._usual_event(event):
                    self._event(event)
        except (sse.TooLong, orjson.JSONDecodeError, TypeError, KeyError, AttributeError):
            self.flush()
            self.error = {"message": "The engine's stream could not be read."}
            self.stop(End.FAILED)

    def flush(self) -> None:
        """Sink: write what one read brought."""
        if not self._batch or not self._content:
            return
        if not self._client.started:
            self._client.start(200, _STREAM_HEADERS, None)
        batch, self._batch = self._batch, []
        offset = self._client.offset
        for chunk, out in batch:
            offset += len(chunk)
            self._marks.append((offset - 2, out))
        self._client.write(b"".join([chunk for chunk, _ in batch]))
        self._written()

    def ended(self) -> None:
        """Sink: the stream is over; [DONE] alone is no success."""
        if self.status != 200:
            self._ended(End.REFUSED)
        elif self._done and self._finished and not self.error:
            self._content = True
            self.flush()
            self._ended(End.COMPLETE)
        else:
            self._ended(End.FAILED)

    def delivered(self) -> int:
        """Output tokens that the client's TCP has acknowledged."""
        return self._delivered.acknowledged(self._client.acknowledged())

    def terminal(self, counts: usage.Counts, cost_pico: int, currency: str) -> bytes:
        """What ends a stream that is complete: its usage, if the client wants it, and [DONE]."""
        end = b"data: [DONE]\n\n"
        if self.last is None or not self._tells:
            return end
        event, parsed = self.last
        return usage.replace(event, parsed, usage.public(parsed["usage"], counts, cost_pico, currency)) + end

    def failure(self, problem: Problem) -> bytes:
        """The event that ends a stream which cannot go on."""
        return b"data: " + orjson.dumps(problem.as_openai()) + b"\n\n"

    def _written(self) -> None:
        if self._client.blocked and self._connection is not None:
            self._connection.pause()
        if len(self._marks) > _MARKS:
            self.delivered()
        if self.running.out >= self._progress_next:
            self._note_progress()

    def _event(self, event: bytes) -> None:
        text = sse.payload(event)
        if text is None or self.error:
            return
        if text == sse.DONE:
            self._done = True
            return
        parsed = orjson.loads(text)
        if "error" in parsed:
            self.error = parsed["error"]
            return
        choices, tokens = parsed["choices"], parsed.get("usage")
        if not choices:
            if tokens is not None:
                self.running.finish(tokens)
                self.last = event, parsed
            return
        if tokens is not None:
            self.running.chunk(tokens, choices[0].get("index", 0))
        for choice in choices:
            if choice.get("finish_reason"):
                self.finish, self._finished = choice["finish_reason"], True
        self._content = self._content or tokens is None or self.running.out > 0 or self._finished
        if spelled := self._spelled(event, parsed):
            self._keep(spelled)

    def _keep(self, spelled: bytes) -> None:
        self._batch.append((http_head.chunk(spelled), self.running.out))

    def _spelled(self, event: bytes, parsed: Mapping[str, Any]) -> bytes:
        """What the client gets for one event with a choice."""
        return usage.strip(event, parsed) if self._strips and "usage" in parsed else event

    def _usual_event(self, event: bytes) -> bool:
        found = usual.read_event(event)
        if found is None or not self.running.follows(self.running.out, found[2], int(found[3])):
            return False
        self.running.out = int(found[3])
        self._content = True
        self._keep(found[1] + usual.END if self._strips else event)
        return True

    def _note_progress(self) -> None:
        self._progress_out = self.running.out
        self._progress_next = self._progress_out + PROGRESS_TOKENS
        self._progress(self.delivered())
