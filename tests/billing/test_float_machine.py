"""A random life of one float: whatever happens in whatever order, nobody overspends and the books hold."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

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

from billing import books, invoicing, lender, services, settling
from billing.corrections import usage_correct
from billing.floats import Floats
from billing.ingest import Journalled, events_ingest
from billing.models import GatewayJournal, Invoice, LedgerEntry, LedgerTx
from billing.models import UsageEvent as Booked
from billing.operations import corrections_apply, operation_ask
from inference import gateway
from kernel import wire
from kernel.clock import month_of, utcnow
from kernel.pricing import OUT
from kernel.problems import Problem
from kernel.usage import UsageEvent
from tests.billing.harbour import harbour, one, run
from tests.conftest import as_role
from tests.services import soak

PRICE = 420_000
SOME = st.integers(1, 60)
MANY = st.integers(1, 500)
STEPS = 200
LIVES = soak(800)
CHECKED_EVERY = 25
PAST_EVERY_EXPIRY_S = 2 * 3600
ADMIT, SETTLE = (Path(gateway.__file__).with_name(f"{name}.lua").read_text() for name in ("admit", "settle"))


@dataclass
class Open:
    """An admitted request that goes on; its event starts at admission."""

    event: UsageEvent
    reserved: int


class Killed(BaseException):
    """A process ends here."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed


class FloatLife(RuleBasedStateMachine):
    """Gateway, lender, meter, people with money and invoices, and a Redis that forgets or comes back older, as rules.

    The gateway's side of Redis is its own scripts. A start of the server is a number here: only that is no real part.
    """

    redis: "redis.Redis"
    starts = 1
    lives = steps = booked = 0

    @initialize(tokens=MANY)
    def begin(self, tokens: int) -> None:
        FloatLife.lives += 1
        self.redis.flushdb()
        # A region of its own: the lender walks nothing that an earlier life left.
        self.region = f"r{FloatLife.lives}"
        self.berth = harbour(money=0, region=self.region)
        self.float = wire.float_key(self.berth.tenant_id, "general", "USD")
        self.key = str(uuid4())
        self.running: list[Open] = []
        self.journal: list[Journalled] = []
        self.on_the_books: list[UsageEvent] = []
        self.corrected_early: set[UUID] = set()
        self.remembered: dict[bytes, bytes] = {}
        self.paid_in = self.rounded = 0
        GatewayJournal.objects.create(gateway_id=self.berth.gateway_id, boot_id=self.berth.boot_id)
        self._project()
        self.top_up(tokens)
        self.lend(tokens)
        self.admit([(1, 1)])

    @rule(tokens=MANY)
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

    @rule(tokens=SOME, sweep=st.booleans())
    def lend(self, tokens: int, sweep: bool = True) -> None:
        lender.lender_pass(self.redis, region=self.region, wants=[self._want(tokens)], sweep=sweep)

    @rule(tokens=SOME, sweep=st.booleans())
    def recall(self, tokens: int, sweep: bool) -> None:
        lender.lender_pass(self.redis, region=self.region, wants=[self._want(-tokens)], sweep=sweep)

    @rule(step=st.sampled_from(["open", "lend", "mark_dry", "take", "taken", "end"]), idle=st.booleans(), tokens=SOME)
    def lender_killed(self, step: str, idle: bool, tokens: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Floats, step, killed)
            patch.setattr(lender, "RECENT", timedelta(0) if idle else lender.RECENT)
            try:
                if idle:
                    lender.lender_pass(self.redis, region=self.region)
                else:
                    self.lend(tokens)
            except Killed:
                return

    @rule(
        requests=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=5),
        last_month=st.booleans(),
        lent_in_time=st.booleans(),
    )
    def admit(self, requests: list[tuple[int, int]], last_month: bool = False, lent_in_time: bool = False) -> None:
        """Requests with a limit and a use; some count for the month before, whose invoice may be out.

        The first that is refused asks the lender, as a gateway does, and is tried again if that comes in time.
        """
        for max_tokens, used in requests:
            event_id, amount = str(uuid4()), max_tokens * PRICE
            reply = self._admit(event_id, amount)
            if reply[0] != b"admitted" and lent_in_time:
                lent_in_time = False
                self.lend(sum(most for most, _ in requests))
                reply = self._admit(event_id, amount)
            if reply[0] != b"admitted":
                continue
            now = month_of(utcnow())[0] - timedelta(hours=1) if last_month else utcnow()
            event = self.berth.event(
                subject_id=event_id,
                counts={OUT: min(used, max_tokens)},
                generation=int(reply[4]),
                started_at=now,
                ended_at=now,
            )
            self.running.append(Open(UsageEvent.from_json(event.to_json()), amount))

    @precondition(lambda self: self.running)
    @rule(keep=st.integers(0, 2))
    def settle(self, keep: int) -> None:
        """All but `keep` requests end."""
        while len(self.running) > keep:
            done = self.running.pop()
            self.journal.append(self.berth.record(done.event))
            self._eval(
                SETTLE,
                [wire.concurrency(self.key)],
                [str(done.event.subject_id), done.reserved - done.event.quoted_pico],
            )

    @precondition(lambda self: self.running)
    @rule(closed=st.booleans())
    def gateway_killed(self, closed: bool) -> None:
        """Between CLOSE and settle, or before OPEN: then no event will ever come."""
        done = self.running.pop()
        if closed:
            self.journal.append(self.berth.record(done.event))

    @precondition(lambda self: self.journal)
    @rule(repeats=st.integers(1, 3))
    def pull(self, repeats: int) -> None:
        for _ in range(repeats):
            assert events_ingest(self.journal).quarantined == 0
        self.on_the_books += [UsageEvent.from_json(record.payload) for record in self.journal]
        FloatLife.booked += len(self.journal)
        self.journal = []
        self._report()

    @precondition(lambda self: self.journal)
    @rule()
    def meter_killed(self) -> None:
        with pytest.raises(Killed):
            events_ingest(self.journal, then=killed)

    @precondition(lambda self: self.on_the_books)
    @rule()
    def contradict(self) -> None:
        assert self.berth.ingest(replace(self.on_the_books[-1], finish="length")).quarantined == 1

    @precondition(lambda self: self.on_the_books)
    @rule(tokens=SOME)
    def correct(self, tokens: int) -> None:
        event = self.on_the_books[tokens % len(self.on_the_books)]
        if event.event_id in self.corrected_early:
            return
        with suppress(Problem):
            usage_correct(event_id=event.event_id, counts={OUT: -min(tokens, 20)}, actor="t", reason="r")

    @precondition(lambda self: self.running)
    @rule()
    def correct_early(self) -> None:
        """Before the event is there; of a killed gateway's request it may never come."""
        event_id = self.running[-1].event.event_id
        if event_id not in self.corrected_early:
            self.corrected_early.add(event_id)
            arguments = {"event_id": str(event_id), "counts": {OUT: -1}, "reason": "r"}
            assert operation_ask(action="correct", arguments=arguments, actor="t")

    @precondition(lambda self: self.corrected_early)
    @rule()
    def apply_early_corrections(self) -> None:
        corrections_apply()
        booked = {event.event_id for event in self.on_the_books} & self.corrected_early
        applied = Booked.objects.filter(corrects__in=self.corrected_early).values_list("corrects", flat=True)
        assert sorted(applied) == sorted(booked)

    @rule(issue=st.booleans())
    def bill_last_month(self, issue: bool) -> None:
        start, end = month_of(month_of(utcnow())[0] - timedelta(days=1))
        for invoice in Invoice.objects.filter(tenant_id=self.berth.tenant_id, kind="regular", number__isnull=False):
            try:
                settling.credit_note_issue(invoice_id=invoice.id, actor="t")
            except Problem:
                settling.invoice_pay(invoice_id=invoice.id, received_pico=0, actor="t")
            self.rounded = self._rounded()
            return
        draft = invoicing.invoice_draft(tenant_id=self.berth.tenant_id, currency="USD", period=(start, end))
        if issue:
            with suppress(Problem):  # nothing is on it yet
                invoicing.invoice_issue(invoice_id=draft.id, actor="t", books_whole=True)
        self.rounded = self._rounded()

    @rule()
    def redis_forgets(self) -> None:
        self.redis.flushdb()
        self._project()

    @rule()
    def redis_is_saved(self) -> None:
        self.remembered = {key: self.redis.dump(key) for key in self.redis.scan_iter()}

    @rule()
    def redis_comes_back_older(self) -> None:
        FloatLife.starts += 1
        self.redis.flushdb()
        for key, value in self.remembered.items():
            self.redis.restore(key, 0, value)
        self._project()

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        """Everything that happened lies further back; the gateway reports its oldest open request."""
        run(
            "UPDATE hold SET sealed_at = sealed_at - make_interval(secs => %s)"
            " WHERE sealed_at IS NOT NULL AND subject = %s",
            seconds,
            f"gateway:general:{self.region}",
        )
        self._report()

    @rule()
    def hours_pass(self) -> None:
        """Longer than any request: what runs has ended and is pulled, what nobody ended has expired."""
        self.settle(0)
        if self.journal:
            self.pull(1)
        names = wire.reservations(self.float)
        for request_id, value in self.redis.hgetall(names).items():
            generation, amount, expiry_ms = value.decode().split("|")
            self.redis.hset(names, request_id, f"{generation}|{amount}|{int(expiry_ms) - PAST_EVERY_EXPIRY_S * 1000}")
        run(
            "UPDATE hold SET sealed_at = sealed_at - interval '2 hours', expires_at = expires_at - interval '2 hours'"
            " WHERE sealed_at IS NOT NULL AND subject = %s",
            f"gateway:general:{self.region}",
        )
        self._report()

    @invariant()
    def nobody_overspends(self) -> None:
        FloatLife.steps += 1
        posted = self.berth.posted()
        assert "overrun" not in posted
        assert posted.get("prepaid", 0) == self.paid_in - posted.get("revenue", 0) - self.rounded

    def teardown(self) -> None:
        """Once all is quiet, what is lent is what is free or reserved, to the pico."""
        for _ in range(2):
            self.hours_pass()
            lender.lender_pass(self.redis, region=self.region)
        live = "account_id IN (SELECT id FROM ledger_account WHERE tenant_id = %s) AND sealed_at IS NULL"
        lent = one(f"SELECT COALESCE(sum(open), 0) FROM hold WHERE {live}", self.berth.tenant_id)
        assert lent == int(self.redis.hget(self.float, "free") or 0)
        assert self.redis.hgetall(wire.reservations(self.float)) == {}
        assert one("SELECT sum(held) FROM ledger_account WHERE tenant_id = %s", self.berth.tenant_id) == lent
        if FloatLife.lives % CHECKED_EVERY == 0:
            with as_role("auditor"):
                assert books.check() == []
        GatewayJournal.objects.filter(gateway_id=self.berth.gateway_id).delete()

    def _want(self, tokens: int) -> wire.Want:
        return wire.Want(str(self.berth.tenant_id), "general", "USD", tokens * PRICE)

    def _rounded(self) -> int:
        """What invoices rounded off, pico-units."""
        entries = LedgerEntry.objects.filter(tx__tenant_id=self.berth.tenant_id, account__kind="rounding")
        return sum(int(amount) for amount in entries.values_list("amount", flat=True))

    def _run_id(self) -> str:
        return f"start {self.starts}"

    def _project(self) -> None:
        self.redis.set(wire.EPOCH, "1")
        self.redis.hset(wire.key(self.key), "v", 1)

    def _admit(self, event_id: str, amount: int) -> Any:
        return self._eval(
            ADMIT,
            [wire.EPOCH, wire.FLOAT_RUN, wire.key(self.key), wire.rpm(self.key, 0), wire.concurrency(self.key)],
            [self._run_id(), 1, "live", "", 0, "", 10**9, 10**9, event_id, amount, 3_600_000, 7],
        )

    def _eval(self, script: str, names: list[str], arguments: list[Any]) -> Any:
        names = [*names, self.float, wire.reservations(self.float)]
        return self.redis.eval(script, len(names), *names, *arguments)

    def _report(self) -> None:
        """What the meter notes once everything is pulled; a request that runs holds it back."""
        low = utcnow() - timedelta(hours=1) if self.running or self.journal else utcnow()
        GatewayJournal.objects.filter(gateway_id=self.berth.gateway_id).update(
            posted_low_at=low, run_id=self._run_id(), seen_at=utcnow()
        )


@pytest.fixture
def fast_commits(database: None) -> Iterator[None]:
    """What is killed here is no database: commits need not wait for the disk."""
    run("SET synchronous_commit TO off")
    yield
    run("RESET synchronous_commit")


@pytest.mark.soak
def test_a_random_life_of_a_float_never_overspends(
    fast_commits: None, gateway_redis: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    FloatLife.redis = gateway_redis
    FloatLife.lives = FloatLife.steps = FloatLife.booked = 0
    GatewayJournal.objects.all().delete()
    monkeypatch.setattr(lender, "redis_run_id", lambda _: f"start {FloatLife.starts}")
    run_state_machine_as_test(
        FloatLife,
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert FloatLife.steps >= 10_000
    # A machine that books nothing proves nothing.
    assert FloatLife.booked >= 4 * LIVES
