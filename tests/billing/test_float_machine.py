"""A random life of one float: whatever happens in whatever order, nobody overspends and the books hold."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing import books, invoicing, lender, services
from billing.floats import Floats
from billing.ingest import events_ingest
from billing.models import GatewayJournal, LedgerTx
from kernel import wire
from kernel.clock import month_of, utcnow
from kernel.pricing import OUT
from kernel.problems import Problem
from kernel.usage import UsageEvent
from tests.billing.harbour import REGION, harbour, run
from tests.conftest import as_role
from tests.services import soak

PRICE = 420_000
SOME = st.integers(1, 60)
LIVES = soak(400)


@dataclass
class Open:
    """An admitted request that goes on, or has ended and is not pulled yet."""

    event: UsageEvent
    reserved: int
    admitted_at: datetime


class Killed(BaseException):
    """A process ends here."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


class FloatLife(RuleBasedStateMachine):
    """Gateway, lender, meter, a person with money, and a Redis that forgets, as rules."""

    redis: "redis.Redis"
    booked = 0

    @initialize(tokens=SOME)
    def begin(self, tokens: int) -> None:
        self.redis.flushdb()
        self.berth = harbour(money=0)
        self.float = wire.float_key(self.berth.tenant_id, "general", "USD")
        self.running: list[Open] = []
        self.ended: list[Open] = []
        self.paid_in = 0
        GatewayJournal.objects.create(gateway_id=self.berth.gateway_id, boot_id=self.berth.boot_id)
        self.top_up(tokens)
        self.lend(tokens)
        self.admit([(1, 1)])

    @rule(tokens=SOME)
    def top_up(self, tokens: int) -> None:
        amount = tokens * PRICE
        services.topup(
            tenant_id=self.berth.tenant_id, currency="USD", amount_pico=amount, idem_key=str(uuid4()), actor="t"
        )
        self.paid_in += amount

    @rule()
    def refund_the_last_top_up(self) -> None:
        top_ups = LedgerTx.objects.filter(tenant_id=self.berth.tenant_id, kind="topup", reversed_by=None)
        last = top_ups.order_by("-recorded_at").first()
        if last is None:
            return
        try:
            services.topup_reverse(tx_id=last.id, actor="t")
        except Problem:
            return
        self.paid_in -= max(entry.amount for entry in last.entries.all())

    @rule(tokens=SOME)
    def lend(self, tokens: int) -> None:
        wants = [wire.Want(str(self.berth.tenant_id), "general", "USD", tokens * PRICE)]
        lender.lender_pass(self.redis, region=REGION, wants=wants)

    @rule(step=st.sampled_from(["open", "lend", "mark_dry", "take", "taken"]), idle=st.booleans(), tokens=SOME)
    def lender_killed(self, step: str, idle: bool, tokens: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Floats, step, killed)
            patch.setattr(lender, "RECENT", timedelta(0) if idle else lender.RECENT)
            try:
                if idle:
                    lender.lender_pass(self.redis, region=REGION)
                else:
                    self.lend(tokens)
            except Killed:
                return

    @rule(requests=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=5))
    def admit(self, requests: list[tuple[int, int]]) -> None:
        """Requests with a limit and a use, while there is a float and money in it."""
        for max_tokens, used in requests:
            generation = self.redis.hget(self.float, "gen")
            amount = max_tokens * PRICE
            if generation is None:
                return
            if int(self.redis.hincrby(self.float, "free", -amount)) < 0:
                self.redis.hincrby(self.float, "free", amount)
                continue
            event = self.berth.event(counts={OUT: min(used, max_tokens)}, generation=int(generation))
            self.running.append(Open(event, amount, utcnow()))

    @precondition(lambda self: self.running)
    @rule(keep=st.integers(0, 2))
    def settle(self, keep: int) -> None:
        """All but `keep` requests end."""
        while len(self.running) > keep:
            done = self.running.pop()
            self.ended.append(done)
            if self.redis.hget(self.float, "gen") == str(done.event.generation).encode():
                self.redis.hincrby(self.float, "free", done.reserved - done.event.quoted_pico)

    @precondition(lambda self: self.ended)
    @rule(repeats=st.integers(1, 3))
    def pull(self, repeats: int) -> None:
        records = [self.berth.record(item.event) for item in self.ended]
        for _ in range(repeats):
            assert events_ingest(records).quarantined == 0
        contradiction = replace(self.ended[0].event, finish="length")
        assert self.berth.ingest(contradiction).quarantined == 1
        FloatLife.booked += len(records)
        self.ended = []
        self._report()

    @rule()
    def redis_forgets(self) -> None:
        self.redis.flushdb()

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        """Everything that happened lies further back; the gateway reports its oldest open request."""
        run("UPDATE hold SET sealed_at = sealed_at - make_interval(secs => %s)", seconds)
        for item in self.running + self.ended:
            item.admitted_at -= timedelta(seconds=seconds)
        self._report()

    @rule()
    def draft(self) -> None:
        period = month_of(utcnow())
        invoicing.invoice_draft(tenant_id=self.berth.tenant_id, currency="USD", period=period)

    @invariant()
    def nobody_overspends(self) -> None:
        posted = self.berth.posted()
        assert "overrun" not in posted
        assert posted.get("prepaid", 0) == self.paid_in - posted.get("revenue", 0)

    def teardown(self) -> None:
        GatewayJournal.objects.filter(gateway_id=self.berth.gateway_id).delete()
        with as_role("auditor"):
            assert books.check() == []

    def _report(self) -> None:
        low = min([item.admitted_at for item in self.running + self.ended], default=utcnow())
        GatewayJournal.objects.filter(gateway_id=self.berth.gateway_id).update(
            posted_low_at=low, run_id=lender.redis_run_id(self.redis), seen_at=utcnow()
        )


@pytest.mark.soak
def test_a_random_life_of_a_float_never_overspends(database: None, gateway_redis: "redis.Redis") -> None:
    FloatLife.redis = gateway_redis
    FloatLife.booked = 0
    run_state_machine_as_test(
        FloatLife,
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    # A machine that books nothing proves nothing: at least every second life gets that far.
    assert FloatLife.booked >= LIVES // 2
