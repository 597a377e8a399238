"""One pipelined Redis connection: calls of one loop turn leave in one write, replies come back in order.

It reconnects by itself. A connection knows the `run_id` of the server that it reached; while there is
none, every call raises Unreachable at once.
"""

import asyncio
import hashlib
import logging
import re
import time
from collections import deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis

log = logging.getLogger(__name__)

TIMEOUT_S = 2.0
_WATCH_S = 0.25
_RECONNECT_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_RUN_ID = re.compile(rb"run_id:([0-9a-f]{40})")

Argument = str | bytes | int


class Unreachable(ConnectionError):
    """Redis cannot be reached, or did not answer in time: whether the call had an effect is not known."""


class Script:
    """A Lua script and the name that Redis gives it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Redis:
    """The gateway's Redis. `run_id` is None while there is no connection that passed its handshake."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._link: _Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.run_id: str | None = None
        self.clock_offset_ms = 0

    def start(self) -> None:
        """Connect, and again whenever the connection breaks, until `close`."""
        self._keeper = asyncio.create_task(self._keep_connected())

    async def close(self) -> None:
        """Stop reconnecting and hang up."""
        if self._keeper:
            self._keeper.cancel()
        if self._link:
            self._link.transport.close()

    async def call(self, *command: Argument) -> Any:
        """One reply. Unreachable, or hiredis.ReplyError where Redis refuses the command."""
        return await self._send(command)

    async def pipeline(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """The replies of commands that are sent together, in order."""
        replies: list[Any] = await asyncio.gather(*[self._send(command) for command in commands])
        return replies

    async def script(self, script: Script, keys: Sequence[Argument], args: Sequence[Argument]) -> Any:
        """Run a script by its name, or whole where the server does not have it yet."""
        try:
            return await self.begin(script, keys, args)
        except hiredis.ReplyError as refusal:
            if not str(refusal).startswith("NOSCRIPT"):
                raise
            return await self._send(("EVAL", script.text, len(keys), *keys, *args))

    def begin(self, script: Script, keys: Sequence[Argument], args: Sequence[Argument]) -> "asyncio.Future[Any]":
        """Run a script by its name without waiting; the reply may be that the server does not have it."""
        return self._send(("EVALSHA", script.sha, len(keys), *keys, *args))

    async def compare_clocks(self) -> None:
        """Measure `clock_offset_ms` anew: how far Redis's clock is ahead of ours."""
        self._compare_clocks(await self._send(("TIME",)))

    def _compare_clocks(self, reply: Sequence[bytes]) -> None:
        seconds, micros = reply
        self.clock_offset_ms = int(seconds) * 1000 + int(micros) // 1000 - time.time_ns() // 1_000_000

    def _send(self, command: tuple[Argument, ...]) -> "asyncio.Future[Any]":
        if self._link is None or self.run_id is None:
            raise Unreachable("Redis is not connected")
        return self._link.send(command)

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            link = _Link(loop)
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await loop.create_connection(
                        lambda link=link: link,  # type: ignore[misc]  # a default argument, not a parameter
                        self._url.hostname or "127.0.0.1",
                        self._url.port or 6379,
                    )
                    run_id = await self._handshake(link)
            except (OSError, hiredis.ReplyError) as failure:
                if failures == 0:
                    log.warning("redis: %s", failure)
                link.hang_up()
                await asyncio.sleep(_RECONNECT_S[min(failures, len(_RECONNECT_S) - 1)])
                failures += 1
                continue
            failures = 0
            self._link, self.run_id = link, run_id
            await link.broken.wait()
            self._link = self.run_id = None

    async def _handshake(self, link: "_Link") -> str:
        """AUTH, SELECT, the server's run_id, and how far its clock is from ours."""
        if self._url.password:
            user = (unquote(self._url.username),) if self._url.username else ()
            await link.send(("AUTH", *user, unquote(self._url.password)))
        await link.send(("SELECT", self._url.path.strip("/") or "0"))
        info = await link.send(("INFO", "server"))
        self._compare_clocks(await link.send(("TIME",)))
        found = _RUN_ID.search(info)
        if found is None:
            raise Unreachable("the server does not tell its run_id")
        return found[1].decode()


class _Link(asyncio.Protocol):
    """One TCP connection: replies in the order of commands."""

    transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()  # a reply and until when
        self._unsent: list[bytes] = []
        self.lost = False
        self.broken = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # always TCP
        self.transport = transport
        self._watch()

    def hang_up(self) -> None:
        if hasattr(self, "transport"):
            self.transport.abort()

    def send(self, command: tuple[Argument, ...]) -> "asyncio.Future[Any]":
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self.lost:
            reply.set_exception(Unreachable("the connection to Redis broke"))
            return reply
        self._waiting.append((reply, self._loop.time() + TIMEOUT_S))
        if not self._unsent:
            self._loop.call_soon(self._write)
        self._unsent.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # stub: one word
        return reply

    def _write(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (value := self._reader.gets()) is not False:
            reply, _ = self._waiting.popleft()
            if reply.done():
                continue
            if isinstance(value, hiredis.ReplyError):
                reply.set_exception(value)
            else:
                reply.set_result(value)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.broken.set()
        self._watcher.cancel()
        for reply, _ in self._waiting:
            _fail(reply, "the connection to Redis broke")
        self._waiting.clear()

    def _watch(self) -> None:
        """Give up on replies that are late; their place in the order is kept for when they come."""
        self._watcher = self._loop.call_later(_WATCH_S, self._watch)
        now = self._loop.time()
        for reply, until in self._waiting:
            if until > now:
                break
            _fail(reply, "Redis did not answer in time")


def _fail(reply: "asyncio.Future[Any]", why: str) -> None:
    if not reply.done():
        reply.set_exception(Unreachable(why))
