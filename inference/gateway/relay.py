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
from inference.gateway.core import sse, usage
from inference.gateway.core.delivered import Delivered
from inference.gateway.core.request import Usage
from inference.gateway.server import Connection
from inference.gateway.upstream import EngineConnection

MAX_REFUSAL_BYTES = 64 << 10
MAX_ANSWER_BYTES = 64 << 20
PROGRESS_S = 2.0
PROGRESS_TOKENS = 512
_MARKS = 256
_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class End(Enum):
    """How an attempt ended."""

    COMPLETE = "complete"
    REFUSED = "refused"  # the engine answered with an error status
    FAILED = "failed"  # the engine broke off or said so inside the answer
    UNREACHABLE = "unreachable"
    GONE = "gone"  # the client hung up
    CUT = "cut"  # we ended it: too long, or draining


class Relay:
    """One attempt. `end` is set once; after that nothing more is written."""

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
        """End it from our side or the client's: the engine is left at once."""
        if self._connection is not None:
            self._connection.abort()
        self._ended(end)

    def head(self, status: int) -> None:
        """Sink: the status."""
        self.status = status

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

    def __init__(
        self,
        client: Connection,
        running: usage.Running,
        *,
        wants: Usage,
        progress: Callable[[int], None],
    ) -> None:
        super().__init__(client, running)
        self._loop = asyncio.get_running_loop()
        self._framer = sse.Framer()
        self._wants = wants
        self._progress = progress
        self._progress_at = self._loop.time()
        self._progress_out = 0
        self._delivered = Delivered()
        self._batch: list[tuple[bytes, int]] = []
        self._content = False
        self._finished = self._done = False
        self.last: tuple[bytes, Mapping[str, Any]] | None = None

    def body(self, data: bytes) -> None:
        """Sink: bytes of events."""
        if self.status != 200:
            super().body(data)
            return
        try:
            for event in self._framer.feed(data):
                self._event(event)
        except (sse.TooLong, orjson.JSONDecodeError, TypeError, KeyError, AttributeError):
            self.flush()
            self.error = {"message": "The engine's stream could not be read."}
            self.stop(End.FAILED)

    def flush(self) -> None:
        """Sink: write what one read brought, as one chunk."""
        if not self._batch or not self._content:
            return
        if not self._client.started:
            self._client.start(200, _STREAM_HEADERS, None)
        framed, lead = http_head.chunk(b"".join([event for event, _ in self._batch]))
        offset = self._client.offset + lead
        for event, out in self._batch:
            offset += len(event)
            self._delivered.note(offset, out)
        self._batch = []
        self._client.write(framed)
        if self._client.blocked and self._connection is not None:
            self._connection.pause()
        if len(self._delivered) > _MARKS:
            self.delivered()
        self._note_progress()

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
        self._content = self._content or tokens is None or self.running.counts.out > 0 or self._finished
        if self._wants is not Usage.CONTINUOUS and "usage" in parsed:
            event = usage.strip(event, parsed)
        self._batch.append((event, self.running.counts.out))

    def _note_progress(self) -> None:
        now = self._loop.time()
        ahead = self.running.counts.out - self._progress_out
        if ahead >= PROGRESS_TOKENS or (now - self._progress_at >= PROGRESS_S and ahead):
            self._progress_at, self._progress_out = now, self.running.counts.out
            self._progress(self.delivered())
