"""The lender: money from tenants' accounts to the gateways' floats and back, at most one per region.

Lending writes PostgreSQL first, then Redis under the transfer's number; returning takes from Redis
first. A crash between two steps strands money until the next pass, it never doubles it.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast
from uuid import UUID

import redis
from django.conf import settings
from django.db import Error, connection, transaction
from django.db.models import Max, Q, Sum

from billing import floats as redis_floats
from billing import holds, scoped
from billing.advisory import alone
from billing.core.lending import lend_amount, return_amount
from billing.core.posting import spread
from billing.floats import Fenced, Floats, Reservation, State
from billing.models import SPENDING, Hold, HoldMove, LedgerAccount, MoveKind, Quarantine, UsageEvent
from billing.selectors import spent_since
from kernel import wire
from kernel.clock import utcnow
from kernel.usage import CORRECTION, TOKENS

Redis = redis.Redis
log = logging.getLogger(__name__)
RECENT = timedelta(minutes=10)
WAIT_S = 1
MAX_WANTS = 1000
CLOCKS_APART_S = 2.0
RETRY_S = 2.0
SWEEP_S = 2.0
RECALL_TRIES = 3


@dataclass(frozen=True, slots=True)
class Purse:
    """One float: whose money, for which scope, in which currency, of which region."""

    tenant_id: UUID
    purse: str
    currency: str
    region: str

    @property
    def name(self) -> str:
        """Its key in Redis."""
        return wire.float_key(self.tenant_id, self.purse, self.currency)

    @property
    def subject(self) -> str:
        """The subject of its holds in PostgreSQL."""
        return f"gateway:{self.purse}:{self.region}"

    def holds(self, generation: int) -> list[Hold]:
        """Its holds of a generation, in spending order."""
        found = Hold.objects.filter(
            account__tenant_id=self.tenant_id,
            account__currency=self.currency,
            subject=self.subject,
            generation=generation,
        ).select_related("account")
        return sorted(found, key=lambda hold: SPENDING.index(hold.account.kind))


@dataclass(slots=True)
class Pass:
    """What one pass did: pico-units lent and returned, a new generation begun, old holds closed."""

    lent: int = 0
    returned: int = 0
    fenced: bool = False
    closed: int = 0


def run(stop: threading.Event) -> None:
    """Lend until `stop` is set; whatever fails is logged and tried again."""
    client = redis.Redis.from_url(settings.REDIS_GATEWAY_URL, socket_timeout=WAIT_S + 5, socket_connect_timeout=2)
    swept_at = 0.0
    while not stop.is_set():
        try:
            wants = wants_wait(client) if swept_at else []
            sweep = time.monotonic() - swept_at >= SWEEP_S
            if wants or sweep:
                lender_pass(client, region=settings.REGION, wants=wants, sweep=sweep)
            if sweep:
                swept_at = time.monotonic()
        except (redis.RedisError, Error) as error:
            log.warning("no lending for now: %s", error)
            connection.close()
            stop.wait(RETRY_S)


def wants_wait(client: Redis, *, timeout_s: int = WAIT_S) -> list[wire.Want]:
    """What gateways ask for: the first within `timeout_s` and everything beside it."""
    first = cast("tuple[bytes, bytes] | None", client.blpop([wire.WANT], timeout=timeout_s))
    if first is None:
        return []
    more = cast("list[bytes] | None", client.lpop(wire.WANT, MAX_WANTS)) or []
    return [wire.load_want(text) for text in [first[1], *more]]


def lender_pass(client: Redis, *, region: str, wants: Sequence[wire.Want] = (), sweep: bool = True) -> Pass:
    """One pass: fence if need be, lend what is wanted; a sweep also walks every float and closes old holds.

    Does nothing while another lender of this region works or while the clocks of Redis and PostgreSQL
    lie more than two seconds apart (a price may change between them).
    """
    done = Pass()
    if sweep:
        wants = [*wants, *scoped.wants()]
    with alone("lender", region) as granted:
        if not granted:
            return done
        if _clocks_apart_s(client) > CLOCKS_APART_S:
            log.error("the clocks of Redis and PostgreSQL lie more than %s s apart: no lending", CLOCKS_APART_S)
            return done
        run_id = redis_run_id(client)
        try:
            _check_run(client, run_id)
            _work(client, run_id, region, wants, sweep, done)
        except Fenced as reason:
            log.warning("a new generation of floats begins: %s", reason)
            fence(client, region=region)
            done.fenced = True
            _work(client, redis_run_id(client), region, wants, sweep, done)
    return done


def fence(client: Redis, *, region: str) -> None:
    """Shut out every gateway, seal the region's holds, delete the floats, then let this Redis in."""
    client.delete(wire.FLOAT_RUN)
    holds.gateway_holds_seal(region=region)
    redis_floats.wipe(client)
    client.set(wire.FLOAT_RUN, redis_run_id(client))


def generation(region: str) -> int:
    """The generation that is lent in: of the live holds, else the one after the last."""
    ours = Q(subject__startswith="gateway:", subject__endswith=f":{region}")
    last = Hold.objects.filter(ours).aggregate(live=Max("generation", filter=Q(sealed_at=None)), ever=Max("generation"))
    return int(last["live"] or (last["ever"] or 0) + 1)


def redis_run_id(client: Redis) -> str:
    """What names this very start of the server."""
    return str(client.info("server")["run_id"])


def _check_run(client: Redis, run_id: str) -> None:
    if client.get(wire.FLOAT_RUN) != run_id.encode():
        raise Fenced(f"Redis {run_id} was never lent to")


def _work(client: Redis, run_id: str, region: str, wants: Sequence[wire.Want], sweep: bool, done: Pass) -> None:
    floats = Floats(client, run_id=run_id, generation=generation(region))
    wanted: dict[Purse, int] = defaultdict(int)
    recalled: dict[Purse, int] = defaultdict(int)
    for want in wants:
        purse = Purse(UUID(want.tenant_id), want.purse, want.currency, region)
        if want.amount < 0:
            recalled[purse] -= want.amount
        else:
            wanted[purse] += want.amount
    if sweep:
        for name in redis_floats.names(client):
            _, _, tenant_id, scope, currency = name.split(":")
            wanted.setdefault(Purse(UUID(tenant_id), scope, currency, region), 0)
    for purse, amount in wanted.items():
        _serve(floats, purse, amount, done)
    for purse, amount in recalled.items():
        _recall(floats, purse, amount, done)
    if sweep:
        done.closed += holds.gateway_holds_return(region=region, run_id=run_id, now=utcnow())


def _serve(floats: Floats, purse: Purse, wanted: int, done: Pass) -> None:
    """Bring one float up to what it should hold, and say whether there is more."""
    _reclaim(floats, purse)
    state = _finish(floats, purse, floats.open(purse.name))
    accounts = LedgerAccount.objects.filter(tenant_id=purse.tenant_id, currency=purse.currency, kind__in=SPENDING)
    accounts = accounts.filter(purse=purse.purse).exclude(credit_of__expires_at__lte=utcnow())
    available = sum(max(0, account.available) for account in accounts)
    # Scoped credit is lent as it is wanted, whole: what was spent says nothing of it.
    general = purse.purse == wire.GENERAL
    spend = spent_since(purse.tenant_id, purse.currency, utcnow() - RECENT) if general else 0
    amount = lend_amount(available=available, free=state.free, spend_10_min=spend, wanted=wanted)
    if amount:
        lent = lend(floats, purse, transfer=state.transfer + 1, amount=amount)
        done.lent += lent
        available -= lent
    elif back := return_amount(
        free=state.free, spend_10_min=spend, idle=general and not wanted and _idle(purse, floats)
    ):
        done.returned += take_back(floats, purse, transfer=state.transfer + 1, amount=back)
    if state.dry != (available <= 0):
        floats.mark_dry(purse.name, dry=available <= 0)


def _recall(floats: Floats, purse: Purse, asked: int, done: Pass) -> None:
    """Take free money back for a hold of the tenant's own; requests that lack it now ask for it anew."""
    for _ in range(RECALL_TRIES):
        state = _finish(floats, purse, floats.open(purse.name))
        amount = min(state.free, asked)
        if amount <= 0:
            return
        if returned := take_back(floats, purse, transfer=state.transfer + 1, amount=amount):
            done.returned += returned
            floats.mark_dry(purse.name, dry=False)
            return


def _reclaim(floats: Floats, purse: Purse) -> None:
    """End the reservations that nobody settled: what their events cost stays lent, and all of it while an event
    may be on its way or lies in quarantine.
    """
    # Looked at before the events: what is posted meanwhile is not taken for absent.
    posted_until = holds.posted_until()
    expired = floats.expired(purse.name, grace_ms=int(holds.GRACE.total_seconds() * 1000))
    if not expired:
        return
    events = UsageEvent.objects.filter(subject_id__in=[item.request_id for item in expired], kind=TOKENS)
    originals = events.exclude(provenance=CORRECTION).values_list("subject_id")
    quoted = {subject_id: int(total) for subject_id, total in originals.annotate(total=Sum("quoted_pico"))}
    ended = 0
    for item in expired:
        cost = quoted.get(item.request_id)
        if cost is None:
            if item.expires_at >= posted_until or _set_aside(item):
                continue
            cost = 0
        ended += floats.end(purse.name, item, give_back=max(0, item.amount - cost))
    if ended:
        log.warning("%s: %s reservations expired and went back", purse.name, ended)


def _set_aside(item: Reservation) -> bool:
    """Whether the request's event lies in quarantine: its money waits for a person."""
    return Quarantine.objects.filter(payload__contains=str(item.request_id)).exists()


def lend(floats: Floats, purse: Purse, *, transfer: int, amount: int) -> int:
    """PostgreSQL first, then Redis: at most `amount`, as much as is available; what was lent."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT hold_place(%s::uuid, %s, %s, %s, %s, %s, false)",
            [purse.tenant_id, purse.currency, purse.subject, floats.generation, transfer, amount],
        )
        placed = int(cursor.fetchone()[0])
    if placed:
        floats.lend(purse.name, transfer=transfer, amount=placed)
    return placed


def take_back(floats: Floats, purse: Purse, *, transfer: int, amount: int) -> int:
    """Redis first, then PostgreSQL; what was returned, 0 where that much is not free any more."""
    if not floats.take(purse.name, transfer=transfer, amount=amount):
        return 0
    _book_return(floats, purse, transfer, amount)
    return amount


def _finish(floats: Floats, purse: Purse, state: State) -> State:
    """Do what a crash left undone: returns that PostgreSQL lacks, then the one place that Redis lacks."""
    moves = HoldMove.objects.filter(hold__in=purse.holds(floats.generation), transfer__isnull=False)
    for number, amount in sorted(state.pending.items()):
        if moves.filter(transfer=number).exists():
            floats.taken(purse.name, transfer=number)
        else:
            _book_return(floats, purse, number, amount)
    missing = moves.filter(transfer__gt=state.transfer).values("transfer", "kind").annotate(total=Sum("amount"))
    if not missing:
        return state
    place = missing[0]
    if len(missing) > 1 or place["kind"] != MoveKind.PLACE or state.created or place["transfer"] is None:
        raise Fenced(f"{purse.name} has lost transfers")
    floats.lend(purse.name, transfer=place["transfer"], amount=int(place["total"]))
    return floats.open(purse.name)


def _book_return(floats: Floats, purse: Purse, transfer: int, amount: int) -> None:
    """Return money in PostgreSQL, the last to be spent first, then clear it in Redis."""
    with transaction.atomic():
        lent = list(reversed(purse.holds(floats.generation)))
        holds.accounts_lock_of(lent)
        for hold in lent:
            hold.refresh_from_db(fields=("open",))
        shares = spread(amount, [hold.open for hold in lent])
        if sum(shares) < amount:
            raise Fenced(f"{purse.name} returns more than its holds have")
        holds.returns_write(list(zip(lent, shares, strict=True)), transfer=transfer)
    floats.taken(purse.name, transfer=transfer)


def _idle(purse: Purse, floats: Floats) -> bool:
    """Nothing was lent to this float lately."""
    lately = HoldMove.objects.filter(
        hold__in=purse.holds(floats.generation), kind=MoveKind.PLACE, at__gt=utcnow() - RECENT
    )
    return not lately.exists()


def _clocks_apart_s(client: Redis) -> float:
    seconds, micros = client.time()
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
        return abs(float(cursor.fetchone()[0]) - (seconds + micros / 1e6))
