"""Limits besides requests: tokens per minute, and caps on what a month may cost.

Each is one counter in Redis. Admission takes the most that a request can come to, its end corrects that to
what it came to. The prompt is taken in full from the cached and from the uncached counter: which part the
engine finds in its cache is known at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil

from inference.gateway.core.request import Size
from inference.gateway.core.usage import Counts
from kernel import wire
from kernel.clock import month_of
from kernel.money import to_string
from kernel.pricing import IN_HIT, IN_MISS, OUT
from kernel.problems import RESERVATION_EXCEEDED, SPEND_CAPPED, TOKENS_LIMITED, Problem, ProblemType
from kernel.usage import UsageEvent

PICO_PER_MICRO = 1_000_000
RESERVED = "reserved"
_ALL = "all"
_SPEND = "spend"

_TOKENS = "of {most} %s tokens a minute has {left} left and this request may need {taken}; "
_CAP = (
    "The cap of {most} a month that you set for %s has {left} left and this request may cost {taken}; "
    "lower max_tokens, or raise the cap in the console."
)
_REFUSALS: dict[str, tuple[ProblemType, str]] = {
    "cached": (TOKENS_LIMITED, "This key's limit " + _TOKENS % "cached input"),
    "uncached": (TOKENS_LIMITED, "This key's limit " + _TOKENS % "uncached input"),
    "generated": (TOKENS_LIMITED, "This key's limit " + _TOKENS % "generated"),
    RESERVED: (RESERVATION_EXCEEDED, "This endpoint's reservation " + _TOKENS % "input and generated"),
    "spend-key": (SPEND_CAPPED, _CAP % "this key"),
    "spend-endpoint": (SPEND_CAPPED, _CAP % "this endpoint"),
    "spend-user": (SPEND_CAPPED, _CAP % "each end user"),
}


@dataclass(frozen=True, slots=True)
class Limit:
    """One counter for one request. `name` stands in the answer's headers; `measures` is a meter, all or spend.

    `most` and `taken` are tokens, or pico-units of `currency`; a new counter begins at `until` (Unix seconds).
    """

    name: str
    measures: str
    counter: str
    most: int
    taken: int
    until: int
    currency: str = ""

    @property
    def expires_at(self) -> int:
        """Unix seconds at which Redis may forget the counter."""
        return self.until + wire.KEPT_S


def any_of(key: wire.KeyRecord, route: wire.RouteRecord) -> bool:
    """Whether a request with this key at this endpoint meets any limit at all."""
    return bool(
        key.tpm_cached
        or key.tpm_uncached
        or key.tpm_generated
        or route.tpm
        or key.spend_cap_pico
        or key.user_cap_pico
        or key.endpoint_caps_pico
    )


def limits(
    key: wire.KeyRecord,
    route: wire.RouteRecord,
    *,
    size: Size,
    answers: int,
    amount_pico: int,
    user: str,
    now_s: float,
) -> list[Limit]:
    """The limits that a request meets; `user` is the digest of its end user, "" where it names none."""
    return [
        *_of_tokens(key, route, size, answers, int(now_s) // 60),
        *_of_spend(key, route, amount_pico, user, now_s),
    ]


def corrections(taken: Sequence[Limit], counts: Counts, cost_pico: int) -> list[tuple[str, int]]:
    """What brings each counter from what was taken to what it came to."""
    came_to = {
        IN_HIT: counts.hit,
        IN_MISS: counts.miss,
        OUT: counts.out,
        _ALL: counts.prompt + counts.out,
        _SPEND: cost_pico,
    }
    return [(limit.counter, came_to[limit.measures] - limit.taken) for limit in taken]


def recovered_corrections(event: UsageEvent) -> list[tuple[str, int]]:
    """The same for a request whose gateway died, as far as its event tells; its tokens' minute is long over."""
    month = wire.month(event.started_at)
    whose = [str(event.api_key_id), wire.spend_at_endpoint(event.tenant_id, event.endpoint_id)]
    if event.end_user:
        whose.append(wire.spend_of_user(whose[0], event.end_user))
    return [(wire.spend(one, month), event.quoted_pico - event.reserved_pico) for one in whose]


def headers(taken: Sequence[Limit], left: Sequence[int], now_s: float) -> tuple[str, str]:
    """What follows in RateLimit-Policy and RateLimit, money in millionths."""
    policy, state = "", ""
    for limit, remaining in zip(taken, left, strict=True):
        money = limit.measures == _SPEND
        unit = PICO_PER_MICRO if money else 1
        window = f';qu="micro-{limit.currency.lower()}"' if money else ";w=60"
        policy += f', "{limit.name}";q={limit.most // unit}{window}'
        state += f', "{limit.name}";r={remaining // unit};t={ceil(limit.until - now_s)}'
    return policy, state


def refusal(limit: Limit, used: int, now_s: float) -> Problem:
    """The limit that stood in the way: what it is, what is left of it, and the way out."""
    wait_s = max(1, ceil(limit.until - now_s))
    figures = {"most": limit.most, "left": max(0, limit.most - used), "taken": limit.taken}
    type_, sentence = _REFUSALS[limit.name]
    policy, state = headers([limit], [figures["left"]], now_s)
    shown = {"ratelimit-policy": policy.removeprefix(", "), "ratelimit": state.removeprefix(", ")}
    if limit.measures == _SPEND:
        money = {name: f"{to_string(pico)} {limit.currency}" for name, pico in figures.items()}
        return Problem(type_, sentence.format(**money), extra={"limit": limit.name}, headers=shown)
    if limit.taken > limit.most:
        sentence, retry_after_s = sentence + "lower max_tokens or shorten the prompt.", None
    else:
        sentence, retry_after_s = sentence + f"retry in {wait_s} s.", wait_s
    return Problem(
        type_, sentence.format(**figures), retry_after_s=retry_after_s, extra={"limit": limit.name}, headers=shown
    )


def _of_tokens(key: wire.KeyRecord, route: wire.RouteRecord, size: Size, answers: int, minute: int) -> list[Limit]:
    prompt, out = size.prompt_tokens, answers * size.max_tokens
    rows = (
        ("cached", IN_HIT, key.key_id, key.tpm_cached, prompt),
        ("uncached", IN_MISS, key.key_id, key.tpm_uncached, prompt),
        ("generated", OUT, key.key_id, key.tpm_generated, out),
        (RESERVED, _ALL, route.endpoint_id, route.tpm, prompt + out),
    )
    return [
        Limit(name, measures, wire.tpm(owner, name, minute), most, taken, (minute + 1) * 60)
        for name, measures, owner, most, taken in rows
        if most
    ]


def _of_spend(key: wire.KeyRecord, route: wire.RouteRecord, amount_pico: int, user: str, now_s: float) -> list[Limit]:
    start, end = month_of(datetime.fromtimestamp(now_s, UTC))
    month, until = wire.month(start), int(end.timestamp())
    at_endpoint = wire.spend_at_endpoint(key.tenant_id, route.endpoint_id)
    rows = (
        ("spend-key", key.key_id, key.spend_cap_pico),
        ("spend-endpoint", at_endpoint, key.endpoint_caps_pico.get(route.endpoint_id, 0)),
        ("spend-user", wire.spend_of_user(key.key_id, user), key.user_cap_pico if user else 0),
    )
    return [
        Limit(name, _SPEND, wire.spend(whose, month), most, amount_pico, until, key.currency)
        for name, whose, most in rows
        if most
    ]
