"""One gateway process: puts the parts together, listens, and leaves in order."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator

import hiredis

from inference.gateway import recovery
from inference.gateway.admission import Admission
from inference.gateway.completions import Completions
from inference.gateway.config import Address, Config
from inference.gateway.core.limits import recovered_corrections
from inference.gateway.counting import Counting
from inference.gateway.flights import Flights
from inference.gateway.internal import Internal
from inference.gateway.journal import Journal
from inference.gateway.metrics import Metrics
from inference.gateway.projection import Projection
from inference.gateway.public import Public
from inference.gateway.redis_client import Redis, Unreachable
from inference.gateway.routing import Router
from inference.gateway.server import Server
from inference.gateway.upstream import Pool
from kernel import wire
from kernel.ids import new_id
from kernel.usage import UsageEvent

log = logging.getLogger(__name__)

JOURNAL_FAILED = 74  # EX_IOERR
CUT_S = 5.0
WATCH_S = 0.25
MAX_CLOCK_OFFSET_MS = 500
BACKLOG = 2048
# A client that vanished without a word is noticed within 30 s, silent or not. Connections inherit it.
_HALF_OPEN = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


class App:
    """Everything of one process. `run` returns after a drain."""

    def __init__(self, config: Config) -> None:
        self._config = config
        directory = config.journal_dir / config.gateway_id
        self._lock = recovery.own(directory)
        metrics = self._metrics = Metrics()
        boots, self._recovered = recovery.recover(directory, on_cut=lambda: metrics.add("gateway_journal_cuts_total"))
        boot_id = new_id()
        self._journal = Journal(directory, boot_id, _journal_failed)
        self._redis = Redis(config.redis_url)
        self._projection = Projection(self._redis)
        self._admission = Admission(self._redis, config.longest_s)
        self._pool = Pool()
        self._flights = Flights()
        self._meter_knows = False
        router = Router(self._projection, config.wait_s)
        counting = Counting(
            config=config,
            projection=self._projection,
            admission=self._admission,
            router=router,
            pool=self._pool,
        )
        completions = Completions(
            config=config,
            projection=self._projection,
            admission=self._admission,
            router=router,
            pool=self._pool,
            journal=self._journal,
            flights=self._flights,
            metrics=metrics,
        )
        self._public = Public(config=config, projection=self._projection, completions=completions, counting=counting)
        internal = Internal(
            config=config,
            boots={b.boot_id: b for b in (*boots, self._journal.log)},
            boot_id=str(boot_id),
            redis=self._redis,
            projection=self._projection,
            pool=self._pool,
            flights=self._flights,
            metrics=metrics,
            not_ready=self._not_ready,
            on_meter=self._meter_asked,
        )
        self._server = Server(self._public, config)
        self._internal_server = Server(internal, config)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._redis.start()
        self._settle_recovered()
        async with (
            _listening(self._internal_server, self._config.internal_listen, reuse_port=False),
            _listening(self._server, self._config.listen, reuse_port=self._config.reuse_port) as listener,
        ):
            log.info("gateway %s listens on %s", self._config.gateway_id, self._config.listen)
            watch = asyncio.create_task(self._watch())
            await stop.wait()
            listener.close()
            await self._drain()
            watch.cancel()
        await self._journal.finish()
        await self._redis.close()

    async def _drain(self) -> None:
        """Let answers finish; cut what is left; never leave without every CLOSE."""
        self._public.closed_because = "the gateway is draining"
        self._server.drain()
        await self._handled(self._config.drain_s)
        self._flights.cut()
        await self._handled(CUT_S)
        for connection in list(self._server.connections):
            connection.cut()
        await self._handled(CUT_S)
        await self._admission.settled(CUT_S)

    async def _handled(self, timeout_s: float) -> None:
        if self._server.tasks:
            await asyncio.wait(self._server.tasks.values(), timeout=timeout_s)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with self._survived():
                self._review()
            with self._survived():
                self._pool.close_idle()
            with self._survived():
                await self._flights.look(loop.time(), WATCH_S)
            with self._survived(), contextlib.suppress(Unreachable, hiredis.ReplyError):
                await self._redis.compare_clocks()
                await self._cut_revoked()
            await asyncio.sleep(WATCH_S)

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        """What breaks one part of a look ends neither the other parts nor the looks to come."""
        try:
            yield
        except Exception:
            log.exception("a part of the watch failed; it is tried again in %s s", WATCH_S)
            self._metrics.add("gateway_watch_failures_total")

    async def _cut_revoked(self) -> None:
        """End what runs under keys whose revocation asked for that. A look too few is made up by the next."""
        since_s = int(time.time()) - wire.KEPT_S
        asked = await self._redis.call("ZRANGEBYSCORE", wire.CUT, since_s, "+inf")
        if asked:
            self._flights.revoke({key_id.decode() for key_id in asked})

    def _meter_asked(self) -> None:
        self._meter_knows = True
        self._review()

    def _review(self) -> None:
        """Admit only while the meter knows this boot and the journal's disk has room."""
        if self._server.draining:
            return
        nearly_full = self._journal.nearly_full()
        self._public.closed_because = ""
        if not self._meter_knows:
            self._public.closed_because = "the meter has not asked for this boot's journal yet"
        elif nearly_full:
            self._public.closed_because = "the journal's disk is nearly full"

    def _not_ready(self) -> list[str]:
        reasons = [self._public.closed_because] if self._public.closed_because else []
        if abs(self._redis.clock_offset_ms) > MAX_CLOCK_OFFSET_MS:
            reasons.append(f"the clock differs from Redis's by {self._redis.clock_offset_ms} ms")
        return reasons

    def _settle_recovered(self) -> None:
        """What a boot that died held back goes back, less what its recovered events cost."""
        for event in self._recovered:
            self._admission.settle(
                request_id=str(event.subject_id),
                key_id=str(event.api_key_id),
                float_name=_float_name(event),
                give_back_pico=max(0, event.reserved_pico - event.quoted_pico),
                corrections=recovered_corrections(event),
            )


def raise_file_limit() -> None:
    """Every client takes two descriptors and one more at its engine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _float_name(event: UsageEvent) -> str | None:
    return None if event.purse is None else wire.float_key(event.tenant_id, event.purse, event.currency)


def _journal_failed(failure: OSError) -> None:
    """What is durable is recovered at the next start; going on would pretend that nothing was lost."""
    log.critical("the journal cannot be written: %s; leaving", failure)
    logging.shutdown()
    os._exit(JOURNAL_FAILED)


@contextlib.asynccontextmanager
async def _listening(server: Server, address: Address, *, reuse_port: bool) -> AsyncIterator[asyncio.Server]:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        server.protocol,
        address.host,
        address.port,
        backlog=BACKLOG,
        reuse_port=reuse_port or None,
        family=socket.AF_INET6 if ":" in address.host else socket.AF_INET,
    )
    for sock in listener.sockets:
        for level, name, value in _HALF_OPEN:
            sock.setsockopt(level, name, value)
    sweep = asyncio.create_task(server.sweep())
    try:
        yield listener
    finally:
        listener.close()
        sweep.cancel()
