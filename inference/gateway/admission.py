"""Admission and its end: one Lua call takes a place and the worst case in money, one gives back the rest.

Short of money it asks the lender and tries once more. What a reservation still holds when nobody settles it
(this process died, Redis was away) comes back with the hold.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hiredis import ReplyError

from inference.gateway import authn
from inference.gateway.core import limits
from inference.gateway.core.limits import Limit
from inference.gateway.core.quote import Quote
from inference.gateway.core.request import Size
from inference.gateway.projection import MAX_ENTRIES, incomplete
from inference.gateway.redis_client import Redis, Script, Unreachable
from kernel import wire
from kernel.clock import from_ms, utcnow
from kernel.problems import (
    CONCURRENCY_LIMITED,
    INSUFFICIENT_BALANCE,
    RATE_LIMITED,
    TENANT_SUSPENDED,
    UNAVAILABLE,
    Problem,
)

log = logging.getLogger(__name__)

LENDER_S = 0.5
LENDER_POLL_S = 0.05
SETTLE_TRIES = 60
SETTLE_RETRY_S = 0.5
_TRIES = 20  # a stale key, a new price, and whatever comes in while a lender is waited for

_ADMIT = Script(Path(__file__).with_name("admit.lua").read_text())
_SETTLE = Script(Path(__file__).with_name("settle.lua").read_text())


@dataclass(slots=True)
class Ask:
    """What wants to be admitted. `key_anew` and `price_at` are asked again where Redis knows better.

    `price_at` takes whether the request is beyond a reservation, and paid like any other one.
    `user` is the digest of the client's name of its end user, "" where it gave none.
    """

    request_id: str
    key: wire.KeyRecord
    route: wire.RouteRecord
    size: Size
    answers: int
    user: str
    key_anew: Callable[[], Awaitable[wire.KeyRecord]]
    price_at: Callable[[datetime, bool], Awaitable[Quote]]
    affordable: Callable[[Quote, int], int]  # (quote, free pico-units) -> max_tokens


@dataclass(slots=True)
class Grant:
    """An admitted request. `float_name`, `purse` and `generation` are None where nothing was reserved."""

    request_id: str
    key: wire.KeyRecord
    quote: Quote
    started_at: datetime
    reserved_pico: int
    purse: str | None
    generation: int | None
    headers: dict[str, str]
    limits: Sequence[Limit]

    @property
    def float_name(self) -> str | None:
        """The float that the reservation was taken from."""
        return None if self.purse is None else wire.float_key(self.key.tenant_id, self.purse, self.key.currency)


@dataclass(slots=True)
class _Place:
    """The names in Redis of what the admission of a key for one SKU touches, in the script's order.

    The fourth, a counter of one minute, is each request's own.
    """

    key: wire.KeyRecord
    sku: str
    floats: list[str]
    names: list[str]

    @classmethod
    def of(cls, key: wire.KeyRecord, sku: str) -> "_Place":
        """The names for one key."""
        purses = wire.purses_for(key.purses, sku)
        floats = [wire.float_key(key.tenant_id, purse, key.currency) for purse in purses]
        names = [wire.EPOCH, wire.FLOAT_RUN, wire.key(key.public_id), "", wire.concurrency(key.key_id)]
        for name in floats:
            names += (name, wire.reservations(name))
        return cls(key, sku, floats, names)


@dataclass(slots=True)
class _Wish:
    """A lender was asked; `seen` is the float's generation, transfer and dryness when last looked at."""

    look: tuple[str, ...]
    seen: list[bytes | None]
    until: float

    def may_still_come(self) -> bool:
        """Whether the lender's time is not over."""
        return time.monotonic() < self.until


class Admission:
    """Admits and settles in one Redis."""

    def __init__(self, redis: Redis, longest_s: float) -> None:
        self._redis = redis
        self._longest_ms = int(longest_s * 1000)
        self._settling: set[asyncio.Future[Any]] = set()
        self._places: dict[str, _Place] = {}  # by key id

    async def admit(self, ask: Ask) -> Grant:
        """A place, and money for the worst case. Problem with the one cause that stood in the way.

        What is beyond a reservation falls to money; where that does not cover it, the reservation stood in the way.
        """
        key, quote = ask.key, await ask.price_at(utcnow(), False)
        beyond: Problem | None = None
        lender: _Wish | None = None
        for _ in range(_TRIES):
            met = self._limits(ask, key, quote)
            if beyond:
                met = [limit for limit in met if limit.name != limits.RESERVED]
            cause, now_ms, *rest = await self._run(ask.request_id, key, quote, met)
            if cause == "admitted":
                return _grant(ask.request_id, key, quote, met, now_ms, rest)
            if cause == "stale":
                key = await ask.key_anew()
            elif cause == "repriced":
                quote = await ask.price_at(from_ms(int(now_ms)), beyond is not None)
            elif cause == "short" and rest[1] != "1" and (lender is None or lender.may_still_come()):
                lender = lender or await self._ask_lender(key, quote.amount_pico)
                await self._change(lender)
            elif cause == "short":
                raise beyond or _short(quote, key, free=int(rest[0]), dry=rest[1] == "1", affordable=ask.affordable)
            elif cause == "over":
                limit = met[int(rest[0]) - 1]
                beyond = limits.refusal(limit, int(rest[1]), time.time())
                if limit.name != limits.RESERVED:
                    raise beyond
                quote = await _paid(ask, beyond)
            else:
                raise _refusal(cause, key)
        raise incomplete()

    def settle(
        self,
        *,
        request_id: str,
        key_id: str,
        float_name: str | None,
        give_back_pico: int,
        corrections: Sequence[tuple[str, int]] = (),
    ) -> None:
        """End a reservation in the background; nothing that happens to the request stops it.

        `corrections` are what each counter of a limit took too much, or too little, as (name, difference).
        """
        names = [wire.concurrency(key_id)]
        if float_name is not None:
            names += (float_name, wire.reservations(float_name))
        names += [name for name, _ in corrections]
        args = (request_id, str(give_back_pico), *[str(difference) for _, difference in corrections])

        def ended(reply: asyncio.Future[Any]) -> None:
            self._settling.discard(reply)
            if reply.exception() is not None:
                self._keep_settling(names, args)

        try:
            reply = self._redis.begin(_SETTLE, names, args)
        except Unreachable:
            self._keep_settling(names, args)
        else:
            self._settling.add(reply)
            reply.add_done_callback(ended)

    async def settled(self, timeout_s: float) -> None:
        """Wait for settlements that are under way."""
        until = time.monotonic() + timeout_s
        while self._settling and time.monotonic() < until:
            await asyncio.wait(self._settling, timeout=until - time.monotonic())

    def _limits(self, ask: Ask, key: wire.KeyRecord, quote: Quote) -> Sequence[Limit]:
        if not limits.any_of(key, ask.route):
            return ()
        return limits.limits(
            key,
            ask.route,
            size=ask.size,
            answers=ask.answers,
            amount_pico=quote.amount_pico,
            user=ask.user,
            now_s=time.time(),
        )

    async def _run(self, request_id: str, key: wire.KeyRecord, quote: Quote, met: Sequence[Limit]) -> list[str]:
        place = self._place(key, quote.sheet.sku)
        names = place.names.copy()
        names[3] = wire.rpm(key.key_id, int(time.time()) // 60)
        purses = len(names)
        if met:
            names += [limit.counter for limit in met]
        args: tuple[str | int, ...] = (
            self._redis.run_id or "",
            key.version,
            _standing(key),
            "" if key.expires_at is None else int(key.expires_at * 1000),
            quote.from_ms,
            "" if quote.until_ms is None else quote.until_ms,
            key.rpm,
            key.concurrency,
            request_id,
            str(quote.amount_pico),
            self._longest_ms,
            purses,
        )
        for limit in met:
            args += (str(limit.taken), str(limit.taken - limit.most), str(limit.most), limit.expires_at)
        try:
            reply = await self._redis.script(_ADMIT, names, args)
        except Unreachable:
            for name in place.floats:
                self.settle(
                    request_id=request_id,
                    key_id=key.key_id,
                    float_name=name,
                    give_back_pico=quote.amount_pico,
                    corrections=[(limit.counter, -limit.taken) for limit in met],
                )
            raise
        return [part.decode() for part in reply]

    def _place(self, key: wire.KeyRecord, sku: str) -> "_Place":
        kept = self._places.get(key.key_id)
        if kept is None or kept.key is not key or kept.sku != sku:
            if len(self._places) >= MAX_ENTRIES:
                self._places.clear()
            kept = self._places[key.key_id] = _Place.of(key, sku)
        return kept

    async def _ask_lender(self, key: wire.KeyRecord, amount: int) -> "_Wish":
        """Tell the lender what is missing."""
        purse = key.purses[-1]
        look = ("HMGET", wire.float_key(key.tenant_id, purse, key.currency), "gen", "transfer", "dry")
        want = wire.Want(tenant_id=key.tenant_id, purse=purse, currency=key.currency, amount=amount)
        seen, _ = await self._redis.pipeline(look, ("RPUSH", wire.WANT, wire.dumps(want)))
        return _Wish(look, seen, time.monotonic() + LENDER_S)

    async def _change(self, wish: "_Wish") -> None:
        """Wait until the float is not what it was, or the lender has had its time."""
        before = wish.seen
        while wish.seen == before and wish.may_still_come():
            await asyncio.sleep(LENDER_POLL_S)
            wish.seen = await self._redis.call(*wish.look)

    def _keep_settling(self, names: list[str], args: tuple[str, ...]) -> None:
        task = asyncio.create_task(self._settle(names, args))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, names: list[str], args: tuple[str, ...]) -> None:
        for _ in range(SETTLE_TRIES):
            try:
                await self._redis.script(_SETTLE, names, args)
                return
            except (Unreachable, ReplyError):  # it loads, or is a replica for a while
                await asyncio.sleep(SETTLE_RETRY_S)
        log.error("request %s was not settled; its reservation expires", args[0])


async def _paid(ask: Ask, beyond: Problem) -> Quote:
    """The quote beyond a reservation; the reservation's refusal where nothing is priced there."""
    try:
        return await ask.price_at(utcnow(), True)
    except Problem:
        raise beyond from None


def _grant(
    request_id: str, key: wire.KeyRecord, quote: Quote, met: Sequence[Limit], now_ms: str, rest: list[str]
) -> Grant:
    left, number, generation, *left_of = rest
    reserved = int(number) > 0
    shown = _limit_headers(key, int(left))
    if met:
        policy, state = limits.headers(met, [int(of) for of in left_of], time.time())
        shown = {"ratelimit-policy": shown["ratelimit-policy"] + policy, "ratelimit": shown["ratelimit"] + state}
    return Grant(
        request_id=request_id,
        key=key,
        quote=quote,
        started_at=from_ms(int(now_ms)),
        reserved_pico=quote.amount_pico if reserved else 0,
        purse=wire.purses_for(key.purses, quote.sheet.sku)[int(number) - 1] if reserved else None,
        generation=int(generation) if reserved else None,
        headers=shown,
        limits=met,
    )


def _standing(key: wire.KeyRecord) -> str:
    if not key.live:
        return "revoked"
    return "suspended" if key.suspended else "live"


def _to_next_minute_s() -> int:
    return 60 - int(time.time()) % 60


def _limit_headers(key: wire.KeyRecord, left: int) -> dict[str, str]:
    return {
        "ratelimit-policy": f'"requests";q={key.rpm};w=60',
        "ratelimit": f'"requests";r={left};t={_to_next_minute_s()}',
    }


def _refusal(cause: str, key: wire.KeyRecord) -> Problem:
    if cause == "rpm":
        wait_s = _to_next_minute_s()
        return Problem(
            RATE_LIMITED,
            f"This key's limit of {key.rpm} requests a minute is reached; retry in {wait_s} s.",
            retry_after_s=wait_s,
            headers=_limit_headers(key, 0),
        )
    if cause == "concurrency":
        return Problem(
            CONCURRENCY_LIMITED,
            f"This key's limit of {key.concurrency} requests at a time is reached; retry when one has ended.",
            retry_after_s=1,
        )
    if cause == "suspended":
        return Problem(TENANT_SUSPENDED, "The account is suspended; see the console for the reason.")
    return incomplete() if cause == "incomplete" else authn.refused()


def _short(
    quote: Quote, key: wire.KeyRecord, *, free: int, dry: bool, affordable: Callable[[Quote, int], int]
) -> Problem:
    if not dry:
        return Problem(UNAVAILABLE, "The balance could not be checked in time; retry.", retry_after_s=1)
    most = affordable(quote, free)
    way_out = f"lower max_tokens to at most {most}, or add credit" if most else "add credit"
    return Problem(
        INSUFFICIENT_BALANCE,
        f"The {key.currency} balance does not cover this request at its full length: {way_out}.",
        extra={"affordable_max_tokens": most},
    )
