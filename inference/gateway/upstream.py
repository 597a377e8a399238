"""A small HTTP/1.1 client for engines: pooled connections, answers handed on as they arrive."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import httptools

from inference.gateway.config import Address

log = logging.getLogger(__name__)

CONNECT_S = 2.0
IDLE_S = 2.0  # shorter than an engine's own keep-alive (5 s), so that it rarely closes on us first


class Sink(Protocol):
    """What listens to one answer. After `ended` or `broke` nothing more comes."""

    def head(self, status: int) -> None:
        """The head has been read."""

    def chunks(self, data: bytes) -> int:
        """A read that begins with a chunk of the body: with how many of its bytes, whole chunks, it has dealt."""

    def body(self, data: bytes) -> None:
        """A piece of the body."""

    def flush(self) -> None:
        """Everything that one read brought has been handed over."""

    def ended(self) -> None:
        """The answer is complete."""

    def broke(self) -> None:
        """The connection ended before the answer did, or was no HTTP."""


class EngineConnection(asyncio.Protocol):
    """One connection to one engine; serves one request at a time."""

    __slots__ = (
        "_between_chunks",
        "_parser",
        "_release",
        "_sink",
        "_transport",
        "dead",
        "fresh",
        "idle_since",
    )

    def __init__(self, release: Callable[["EngineConnection"], None]) -> None:
        self._transport: asyncio.Transport
        self._release = release
        self._sink: Sink | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._between_chunks = False
        self.idle_since = 0.0
        self.fresh = True
        self.dead = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # always TCP
        self._transport = transport

    def ask(self, request: bytes, sink: Sink) -> None:
        """Send one request; its answer goes to `sink`."""
        self._sink = sink
        self._between_chunks = False
        self._transport.write(request)

    def usable(self) -> bool:
        """Whether a request can still be sent on it."""
        return not self.dead and not self._transport.is_closing()

    def pause(self) -> None:
        """Read no more until `resume`: the client is behind."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Hang up at once: the engine stops working on the request. The sink hears nothing more."""
        self._sink = None
        self.dead = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self.abort()  # bytes that nobody asked for
            return
        if self._between_chunks and (passed := self._sink.chunks(data)):
            if passed == len(data):
                return
            data = data[passed:]
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break()
            return
        self._between_chunks = self._between_chunks and data.endswith(b"\r\n")
        if self._sink is not None:
            self._sink.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._break()

    def on_headers_complete(self) -> None:
        if self._sink is not None:
            self._sink.head(self._parser.get_status_code())

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_body(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.body(data)

    def on_message_complete(self) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        sink.flush()
        sink.ended()
        if self._parser.should_keep_alive() and not self.dead:
            self.resume()  # the client of this answer may have been behind
            self.fresh = False
            self._release(self)
        else:
            self.abort()

    def _break(self) -> None:
        sink, self._sink = self._sink, None
        self.dead = True
        self._transport.abort()
        if sink is not None:
            sink.broke()


class Pool:
    """Connections by address; the one used last is used first."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Address, list[EngineConnection]] = {}

    async def connect(self, address: Address) -> EngineConnection:
        """An idle connection or a new one. OSError where the engine does not accept it within CONNECT_S."""
        loop = self._loop
        idle = self._idle.get(address, ())
        while idle:
            connection = idle.pop()
            if connection.usable() and loop.time() - connection.idle_since < IDLE_S:
                return connection
            connection.abort()

        def release(connection: EngineConnection) -> None:
            connection.idle_since = loop.time()
            self._idle.setdefault(address, []).append(connection)

        async with asyncio.timeout(CONNECT_S):
            _, connection = await loop.create_connection(lambda: EngineConnection(release), address.host, address.port)
        return connection

    def close_idle(self) -> None:
        """Hang up what has been idle for too long."""
        oldest = self._loop.time() - IDLE_S
        for address, idle in list(self._idle.items()):
            for connection in [c for c in idle if c.dead or c.idle_since < oldest]:
                idle.remove(connection)
                connection.abort()
            if not idle:
                del self._idle[address]


def request_bytes(path: str, address: Address, body: bytes, request_id: str) -> bytes:
    """A POST with the only headers that an engine ever gets: none of the client's, least of all its key."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {address.host}:{address.port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nx-request-id: {request_id}\r\naccept: */*\r\n\r\n"
    )
    return head.encode() + body
