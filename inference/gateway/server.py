"""The HTTP/1.1 edge: one request at a time per connection, a deadline at each stage.

A connection also knows how many bytes of its answer the client's TCP has acknowledged: socket buffers are
kept small, at most one piece waits in the transport, the rest waits here.
"""

import asyncio
import fcntl
import logging
import os
import socket
import struct
import termios
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import orjson

from inference.gateway import http_head
from inference.gateway.config import Config
from inference.gateway.reader import Request, RequestReader
from kernel.ids import minter
from kernel.problems import INTERNAL, REQUEST_TIMEOUT, UNAVAILABLE, Problem

log = logging.getLogger(__name__)
_new_request_id = minter()

SEND_BUFFER_BYTES = 16 << 10
PIECE_BYTES = 16 << 10
LINGER_S = 2.0
SWEEP_S = 0.25


class ClientGone(Exception):
    """The client hung up."""


class _Stage(Enum):
    READ = "read"
    ANSWER = "answer"
    LINGER = "linger"


Handler = Callable[[Request, "Connection"], Awaitable[None]]


@dataclass(slots=True)
class Server:
    """What all connections of one listener share."""

    handler: Handler
    config: Config
    connections: set["Connection"] = field(default_factory=set)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # by request id
    draining: bool = False

    def protocol(self) -> "Connection":
        """A new connection's protocol."""
        return Connection(self)

    async def sweep(self) -> None:
        """Enforce deadlines until cancelled: one timer for all connections."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for connection in [c for c in self.connections if c.deadline < now]:
                connection.timed_out()

    def drain(self) -> None:
        """Take no further request: idle connections close now, busy ones after their answer."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_when_idle()


class Connection(asyncio.Protocol):
    """One client. A handler answers with `respond`, or `start`, `write` and `finish`."""

    __slots__ = (
        "_acknowledged",
        "_drained",
        "_fd",
        "_head",
        "_keep_alive",
        "_loop",
        "_pending",
        "_reader",
        "_sent",
        "_server",
        "_stage",
        "_transport",
        "_unflushed",
        "answer_headers",
        "blocked",
        "deadline",
        "gone",
        "offset",
        "on_drained",
        "on_gone",
        "spell",
        "started",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._fd = -1
        self._acknowledged = 0
        self._stage = _Stage.READ
        self._reader = RequestReader()
        self._head = b""
        self._pending: deque[bytes] = deque()
        self.offset = 0  # bytes that were handed over for writing since the connection began
        self._sent = 0  # those of them that the transport has been given
        self._unflushed = 0
        self.blocked = False  # bytes wait for the client to read
        self._keep_alive = True
        self._drained: asyncio.Future[None] | None = None
        self.deadline = self._loop.time() + server.config.head_s
        self.gone = False
        self.started = False
        self.on_gone: Callable[[], None] | None = None
        self.on_drained: Callable[[], None] | None = None
        self.answer_headers: dict[str, str] = {}
        self.spell = Problem.as_openai

    # Transport callbacks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # always TCP
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        transport.set_write_buffer_limits(high=0)
        self._fd = os.dup(sock.fileno())  # outlives the transport's, to ask what was acknowledged
        self._server.connections.add(self)
        if len(self._server.connections) > self._server.config.max_connections:
            self.refuse(Problem(UNAVAILABLE, "Too many connections are open; retry.", retry_after_s=1))

    def data_received(self, data: bytes) -> None:
        if self._stage is _Stage.READ:
            self._read(data)
        elif self._stage is _Stage.ANSWER:
            self._keep_alive = False  # a second request before the answer: it is never read

    def eof_received(self) -> bool:
        self._transport.abort()
        return False

    def pause_writing(self) -> None:
        self.blocked = True
        self._unflushed = self._transport.get_write_buffer_size()
        self.deadline = self._loop.time() + self._server.config.stall_s

    def resume_writing(self) -> None:
        self.blocked = False
        self._unflushed = 0
        self.deadline = self._loop.time() + self._server.config.idle_s
        if self._stage is _Stage.ANSWER:
            self.deadline = float("inf")
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._acknowledged = self.acknowledged()
        os.close(self._fd)
        self.gone = True
        self._server.connections.discard(self)
        if self.on_gone is not None:
            self.on_gone()
        self._wake()

    # Answering

    def acknowledged(self) -> int:
        """Bytes since the connection began that the client's TCP has acknowledged; a lower bound."""
        if self.gone:
            return self._acknowledged
        unacknowledged: int = struct.unpack("i", fcntl.ioctl(self._fd, termios.TIOCOUTQ, b"\0" * 4))[0]
        return self._sent - self._unflushed - unacknowledged

    def respond(
        self,
        status: int,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        media: str = "application/json",
    ) -> None:
        """A whole answer."""
        self.start(status, {"content-type": media, **(headers or {})}, len(body))
        self.write(body)
        self.finish()

    def start(self, status: int, headers: Mapping[str, str], length: int | None) -> None:
        """Set the head, which leaves with the first `write`; `length` None is chunked."""
        self.started = True
        if self._server.draining:
            self._keep_alive = False
        closing = {} if self._keep_alive else {"connection": "close"}
        self._head = http_head.response(status, {**headers, **self.answer_headers, **closing}, length)
        self.offset += len(self._head)

    def write(self, data: bytes) -> None:
        """Send raw bytes, at once or when the client has room."""
        self.offset += len(data)
        if self._head:
            data, self._head = self._head + data, b""
        if not self._pending and not self.blocked and len(data) <= PIECE_BYTES and not self._transport.is_closing():
            self._transport.write(data)
            self._sent += len(data)
        elif not self.gone:
            for start in range(0, len(data), PIECE_BYTES):
                self._pending.append(data[start : start + PIECE_BYTES])
            if not self.blocked:
                self._flush()

    async def drained(self) -> None:
        """Wait until the kernel has everything. ClientGone if the client hangs up first."""
        while self._pending or self.blocked:
            if self.gone:
                break
            self._drained = self._loop.create_future()
            await self._drained
        if self.gone:
            raise ClientGone

    def finish(self) -> None:
        """The answer is complete: wait for the next request, or close."""
        self.on_gone = self.on_drained = None
        if self.gone:
            return
        if self._keep_alive:
            self._reset()
        else:
            self._linger()

    def refuse(self, problem: Problem) -> None:
        """Answer with a problem that leaves the connection's framing in doubt, then close."""
        self._keep_alive = False
        self.problem(problem)

    def problem(self, problem: Problem) -> None:
        """Answer with a problem, in the shape that `spell` gives it."""
        retry = {} if problem.retry_after_s is None else {"retry-after": str(problem.retry_after_s)}
        self.respond(problem.type.status, orjson.dumps(self.spell(problem)), headers={**problem.headers, **retry})

    def cut(self) -> None:
        """Hang up on the client; what the transport still holds has not reached it."""
        if self.blocked:
            self._unflushed = self._transport.get_write_buffer_size()
        self._transport.abort()

    def close_when_idle(self) -> None:
        """Close now if no request is being read or answered, else after the answer."""
        self._keep_alive = False
        if self._stage is _Stage.READ and not self._reader.begun:
            self._transport.close()

    def timed_out(self) -> None:
        """The deadline of the current stage has passed."""
        self.deadline = float("inf")
        if self._stage is _Stage.READ and self._reader.begun:
            self.refuse(Problem(REQUEST_TIMEOUT, f"The request's {self._reader.stage} arrived too slowly."))
        else:
            self.cut()

    def _flush(self) -> None:
        while self._pending and not self.blocked and not self._transport.is_closing():
            piece = self._pending.popleft()
            self._sent += len(piece)
            self._transport.write(piece)
        if not self._pending and not self.blocked:
            if self._stage is _Stage.LINGER:
                self._end_our_side()
            self._wake()
            if self.on_drained is not None:
                self.on_drained()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _reset(self) -> None:
        self._stage = _Stage.READ
        self.started = False
        self.answer_headers = {}
        self.spell = Problem.as_openai
        self.deadline = self._loop.time() + self._server.config.idle_s

    def _linger(self) -> None:
        """Close without a reset that would destroy the answer: end our side, discard what still arrives."""
        self._stage = _Stage.LINGER
        self.deadline = self._loop.time() + LINGER_S
        if not self._pending and not self.blocked:
            self._end_our_side()

    def _end_our_side(self) -> None:
        if not self._transport.is_closing():
            self._transport.write_eof()

    def _read(self, data: bytes) -> None:
        reader = self._reader
        if not reader.begun:
            reader.begin(_new_request_id(time.time_ns() // 1_000_000))
            self.deadline = self._loop.time() + self._server.config.head_s
            self.answer_headers = {"x-request-id": reader.request_id}
        before = reader.stage
        try:
            request = reader.feed(data)
        except Problem as problem:
            self.refuse(problem)
            return
        if request is not None:
            self._keep_alive = self._keep_alive and reader.keep_alive and not reader.overrun
            self._stage = _Stage.ANSWER
            self.deadline = float("inf")
            self._server.tasks[request.request_id] = self._loop.create_task(self._handle(request))
        elif reader.stage != before:
            self.deadline = self._loop.time() + self._server.config.body_s
            if reader.expects_continue:
                self.write(http_head.CONTINUE)

    async def _handle(self, request: Request) -> None:
        try:
            await self._server.handler(request, self)
        except Problem as problem:
            assert not self.started
            self.problem(problem)
        except ClientGone:
            return
        except Exception:  # the last resort; a traceback holds no values
            log.exception("request %s failed", request.request_id)
            if self.started:
                self.cut()
            else:
                self.problem(Problem(INTERNAL, "Something broke on our side; the request was not answered."))
        finally:
            del self._server.tasks[request.request_id]
