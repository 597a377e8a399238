"""The one path of a completion: authenticate → admit → route → journal → stream → journal → settle."""

import functools
import hmac
from datetime import datetime

import orjson

from inference.gateway import authn, engine_errors, http_head
from inference.gateway.admission import Admission, Ask
from inference.gateway.config import Address, Config
from inference.gateway.core import request as bodies
from inference.gateway.core.limits import corrections
from inference.gateway.core.quote import Quote, affordable_tokens, quote
from inference.gateway.core.usage import Counts
from inference.gateway.flights import Flight, Flights
from inference.gateway.job import Job
from inference.gateway.journal import Journal
from inference.gateway.metrics import Metrics
from inference.gateway.projection import Projection
from inference.gateway.reader import Request
from inference.gateway.relay import End, Relay, StreamRelay
from inference.gateway.routing import Router, not_found, visible
from inference.gateway.server import ClientGone, Connection
from inference.gateway.surfaces import SURFACES
from inference.gateway.upstream import Pool, request_bytes
from kernel import keys, wire
from kernel.pricing import Unrated
from kernel.problems import ENGINE_ERROR, UNRATED, Problem
from kernel.usage import ENGINE_FINAL, ENGINE_PARTIAL, ESTIMATED

ATTEMPTS = 2
# What an event says of an answer that began and could not go on.
_BROKEN_OFF = {End.FAILED: "error_engine", End.CUT: "time_limit", End.REVOKED: "revoked"}


class Completions:
    """Handler of every route of SURFACES."""

    def __init__(
        self,
        *,
        config: Config,
        projection: Projection,
        admission: Admission,
        router: Router,
        pool: Pool,
        journal: Journal,
        flights: Flights,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._projection = projection
        self._admission = admission
        self._router = router
        self._pool = pool
        self._journal = journal
        self._flights = flights
        self._metrics = metrics

    async def __call__(self, request: Request, client: Connection) -> None:
        """Answer one request. Problem before anything was written; later the answer says what happened."""
        flight = self._flights.board(request.request_id)
        job: Job | None = None
        try:
            job = await self._admitted(request)
            flight.key_id = job.grant.key.key_id
            flight.since_ms = int(job.grant.started_at.timestamp() * 1000)
            client.answer_headers |= {**job.grant.headers, "x-moorage-endpoint": job.route.endpoint_id}
            await self._serve(job, flight, client)
        except Problem as problem:
            self._metrics.add("gateway_requests_total", route=request.path, end=problem.type.code)
            raise
        finally:
            if job is not None and not job.ended:
                self._abandon(job)
            self._flights.leave(request.request_id)

    async def _admitted(self, request: Request) -> Job:
        presented = authn.presented(request)

        key = await self._key(presented)
        call = SURFACES[request.path].parse(request.body)
        route = await self._router.endpoint(key, call.model)
        size, answers = bodies.size(call, route.max_model_len), call.answers
        deployment = await self._router.deployment(route)

        async def key_anew() -> wire.KeyRecord:
            newer = await self._key(presented, kept=False)
            if not visible(newer, route, call.model):
                raise not_found(call.model)
            return newer

        async def price_at(at: datetime, beyond: bool) -> Quote:
            sku = deployment.beyond_sku if beyond else deployment.sku
            sheets = await self._projection.sheets(
                tenant_id=key.tenant_id, sku=sku, region=route.region, currency=key.currency
            )
            try:
                return quote(sheets, at=at, size=size, answers=answers)
            except Unrated:
                raise Problem(UNRATED, "No price is in force for this model in your currency yet.") from None

        def affordable(offer: Quote, free_pico: int) -> int:
            return affordable_tokens(offer.sheet, free_pico=free_pico, size=size, answers=answers)

        user = _digest(self._config.pepper, f"{key.tenant_id}\x1f{call.user}") if call.user else ""
        ask = Ask(request.request_id, key, route, size, answers, user, key_anew, price_at, affordable)
        grant = await self._admission.admit(ask)
        return Job.begin(
            source=self._config.gateway_id,
            path=request.path,
            call=call,
            size=size,
            route=route,
            deployment=deployment,
            grant=grant,
            user=user,
        )

    async def _key(self, presented: keys.ParsedKey, *, kept: bool = True) -> wire.KeyRecord:
        return await authn.authenticate(presented, projection=self._projection, pepper=self._config.pepper, kept=kept)

    async def _serve(self, job: Job, flight: Flight, client: Connection) -> None:
        relay, end = await self._attempts(job, flight, client)
        if (end is End.COMPLETE or end in _BROKEN_OFF) and (client.started or end is End.COMPLETE):
            try:
                await client.drained()
            except ClientGone:
                end = End.GONE
        if end is End.GONE:
            await self._client_left(job, relay, client)
        elif end is End.COMPLETE and isinstance(relay, StreamRelay):
            await self._complete_stream(job, relay, client)
        elif end is End.COMPLETE:
            await self._complete_whole(job, relay, client)
        elif client.started and isinstance(relay, StreamRelay):
            await self._break_off(job, relay, end, client)
        else:
            raise _problem(job, relay, end)

    async def _attempts(self, job: Job, flight: Flight, client: Connection) -> tuple[Relay, End]:
        """Ask a replica; ask another one if the first failed before a byte went to the client."""
        besides: str | None = None
        beginning = bodies.beginning(job.call) if job.deployment.prefix_affinity else b""
        for attempt in range(1, ATTEMPTS + 1):
            job.attempt = attempt
            job.pod = await self._router.replica(
                job.deployment.deployment_id, client, besides=besides, beginning=beginning
            )
            await self._journal.open(job.opening())
            job.opened = True
            if client.gone:
                raise ClientGone
            relay = flight.relay = self._relay(job, client)
            flight.until = job.began + self._config.longest_s
            end = await self._ask(job, job.pod, relay)
            failed = end in (End.FAILED, End.UNREACHABLE) or (end is End.REFUSED and relay.status >= 500)
            if client.started or not failed or attempt == ATTEMPTS:
                break
            besides = job.pod.pod_uid
            self._metrics.add("gateway_retries_total")
        return relay, end

    def _relay(self, job: Job, client: Connection) -> Relay:
        running = job.running()
        if not job.call.stream:
            return Relay(client, running)

        def progress(delivered: int) -> None:
            if delivered:
                counts = Counts(running.counts.hit, running.counts.miss, delivered)
                self._journal.progress(job.request_id, counts.meters(), job.cost(counts), job.now().isoformat())

        return SURFACES[job.path].relay(client, running, call=job.call, progress=progress)

    async def _ask(self, job: Job, pod: wire.PodRecord, relay: Relay) -> End:
        address = Address.parse(pod.address)
        on_shared = job.route.shared or job.route.tpm
        # Tenants of a shared engine do not see each other's prefix cache.
        salt = _digest(self._config.pepper, job.grant.key.tenant_id) if on_shared else None
        body = bodies.for_engine(
            job.call, served_name=job.route.served_name, max_tokens=job.size.max_tokens, cache_salt=salt
        )
        with self._router.busy(pod):
            try:
                connection = await self._pool.connect(address)
            except OSError:
                self._router.failed(pod)
                return End.UNREACHABLE
            fresh = connection.fresh
            relay.attach(connection)
            connection.ask(request_bytes(SURFACES[job.path].engine_path, address, body, job.request_id), relay)
            end = await relay.end
        if end is End.FAILED and fresh:
            self._router.failed(pod)
        return end

    async def _complete_stream(self, job: Job, relay: StreamRelay, client: Connection) -> None:
        counts, exact = relay.running.counts, relay.running.final is not None
        cost_pico = await self._close(job, relay, counts, finish=relay.finish, provenance=_provenance(exact, counts))
        terminal = relay.terminal(counts, cost_pico, job.grant.key.currency)
        client.write(http_head.chunk(terminal) + http_head.LAST_CHUNK)
        client.finish()

    async def _complete_whole(self, job: Job, relay: Relay, client: Connection) -> None:
        """All but the last byte, then CLOSE, then the last byte: whoever leaves while the disk is waited for has the
        text that is billed, and nobody has a whole answer that a crash could leave without its CLOSE.
        """
        raw = b"".join(relay.pieces)
        try:
            parsed = orjson.loads(raw)
            relay.running.finish(parsed["usage"])
            relay.finish = parsed["choices"][0].get("finish_reason") or "stop"
            counts = relay.running.counts
            answer = SURFACES[job.path].answer(raw, parsed, job, counts)
        except (orjson.JSONDecodeError, TypeError, KeyError, IndexError, AttributeError):
            raise Problem(ENGINE_ERROR, "The engine's answer could not be read; retry.", retry_after_s=1) from None
        before = client.offset
        client.start(200, {"content-type": "application/json"}, len(answer))
        client.write(answer[:-1])
        try:
            await client.drained()
        except ClientGone:
            reached = client.acknowledged() > before
            billed = counts if reached else Counts()
            await self._close(job, relay, billed, finish="abort_client", waste=counts.out - billed.out)
            return
        await self._close(job, relay, counts, finish=relay.finish, provenance=_provenance(True, counts))
        client.write(answer[-1:])
        client.finish()

    async def _break_off(self, job: Job, relay: StreamRelay, end: End, client: Connection) -> None:
        """The answer began and cannot go on: what was delivered is billed, the client is told, no [DONE]."""
        counts = relay.running.counts
        await self._close(job, relay, counts, finish=_BROKEN_OFF[end], provenance=_provenance(False, counts))
        client.write(http_head.chunk(relay.failure(_problem(job, relay, end))) + http_head.LAST_CHUNK)
        client.finish()

    async def _client_left(self, job: Job, relay: Relay, client: Connection) -> None:
        """The prompt and what reached the client are billed; nothing, if nothing did."""
        seen = relay.running.counts
        delivered = relay.delivered() if isinstance(relay, StreamRelay) else 0
        billed = Counts(seen.hit, seen.miss, delivered) if delivered else Counts()
        provenance = _provenance(False, seen) if client.started else ENGINE_PARTIAL
        waste = seen.out - delivered
        await self._close(job, relay, billed, finish="abort_client", provenance=provenance, waste=waste)

    async def _close(
        self,
        job: Job,
        relay: Relay,
        counts: Counts,
        *,
        finish: str,
        provenance: str = ENGINE_PARTIAL,
        waste: int = 0,
    ) -> int:
        """CLOSE, durable; then the settlement is on its way before anything else is written to the client.

        Returns the cost in pico-units.
        """
        cost_pico = job.cost(counts)
        event = job.event(
            counts,
            finish=finish,
            quoted_pico=cost_pico,
            provenance=provenance,
            engine_usage=relay.running.final,
            waste=waste,
        )
        job.ended = True
        await self._journal.close(event)
        self._settle(job, counts, cost_pico=cost_pico)
        self._metrics.ended(route=job.path, end=finish, meters=event["counts"])
        if relay.running.clamped:
            self._metrics.add("gateway_clamped_total")
        if waste:
            self._metrics.add("gateway_waste_tokens_total", waste)
        if provenance == ESTIMATED:
            self._metrics.add("gateway_uncounted_total")
        return cost_pico

    def _abandon(self, job: Job) -> None:
        """Nothing came of it: everything reserved goes back."""
        job.ended = True
        if job.opened:
            self._journal.drop(job.request_id)
        self._settle(job, Counts(), cost_pico=0)

    def _settle(self, job: Job, counts: Counts, *, cost_pico: int) -> None:
        grant = job.grant
        self._admission.settle(
            request_id=job.request_id,
            key_id=grant.key.key_id,
            float_name=grant.float_name,
            give_back_pico=max(0, grant.reserved_pico - cost_pico),
            corrections=corrections(grant.limits, counts, cost_pico) if grant.limits else (),
        )


@functools.lru_cache(maxsize=4096)
def _digest(pepper: bytes, text: str) -> str:
    """A name that says nothing of the text and differs for every other one."""
    return hmac.digest(pepper, text.encode(), "sha256").hex()[:32]


def _provenance(exact: bool, counts: Counts) -> str:
    """Text without a single token counted is an alarm, not a free answer that nobody notices."""
    if not counts.out:
        return ESTIMATED
    return ENGINE_FINAL if exact else ENGINE_PARTIAL


def _problem(job: Job, relay: Relay, end: End) -> Problem:
    """Why there is no answer, or no more of it."""
    if end is End.REFUSED:
        return engine_errors.refusal(relay.status, b"".join(relay.pieces), max_model_len=job.route.max_model_len)
    if end is End.UNREACHABLE:
        return engine_errors.unreachable()
    if end is End.REVOKED:
        return engine_errors.revoked()
    return engine_errors.cut() if end is End.CUT else engine_errors.failure(relay.error)
