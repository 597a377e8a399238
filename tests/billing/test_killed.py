"""kill -9 of meter, lender and timers, before and after each of their steps: the next one finishes what was begun."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import redis
from django.db import connection

from billing import floats as redis_floats
from billing import holds, ingest, invoicing, lender, meter, months, posting, rating, services, spans
from billing.corrections import usage_correct
from billing.floats import Floats
from billing.lender import Pass, lender_pass
from billing.meter import Gateway, gateway_pull
from billing.models import Invoice, ReceiptTree
from billing.months import month_close
from kernel import wire
from kernel.clock import month_of, utcnow
from kernel.ids import new_id
from kernel.pricing import OUT
from tests.billing import test_lender
from tests.billing.harbour import Harbour, dedicated, harbour, one, run
from tests.billing.journal import Journal
from tests.billing.test_corrections import issued
from tests.billing.test_invoices import last_month, last_number
from tests.billing.test_lender import boot, name_of, recall_of, reserve, want
from tests.billing.test_meter import row_of
from tests.billing.test_spans import booked, clock, fact, open_of, place, rate
from tests.services import wait_until

PULL = [
    (meter, "_report"),
    (meter, "_page"),
    (meter, "events_ingest"),
    (ingest, "charges_post"),
    (posting, "_draws_write"),
    (posting.ledger, "entries_write"),
    (posting, "_leaves_write"),
    (meter, "_boot_pull"),
    (meter, "alarms_log"),
]
LEND = [(Floats, "open"), (lender, "lend"), (Floats, "lend"), (Floats, "mark_dry"), (holds, "gateway_holds_return")]
RETURN = [(Floats, "take"), (holds, "returns_write"), (Floats, "taken")]
SEAL = [(holds, "gateway_holds_seal"), (redis_floats, "wipe"), (holds, "_return_rest")]
OTHERS_LOCKS = """
SELECT count(*) FROM pg_locks WHERE locktype IN ('advisory', 'transactionid') AND pid <> pg_backend_pid()
"""
RECLAIM = [(Floats, "expired"), (Floats, "end")]
PARENTS: list[Any] = []  # a child keeps its parent's connections: closing one would end the parent's session


TIME = [
    (spans, "_fact"),
    (rating.outbox, "mark"),
    (spans, "facts_copy"),
    (rating, "charges_post"),
    (posting, "_draws_write"),
    (posting, "_leaves_write"),
    (spans, "hold_ahead"),
    (holds, "deployment_holds_return"),
]
CLOSE = [
    (months, "_rebates"),
    (months, "invoice_issue"),
    (invoicing, "_post_rounding"),
    (invoicing, "_number"),
    (months, "credit_note_issue"),
]


@dataclass
class Lent:
    """A tenant's float in a region of its own."""

    berth: Harbour
    redis: "redis.Redis"
    region: str

    def lender(self, wants: Sequence[wire.Want] = ()) -> Pass:
        return lender_pass(self.redis, region=self.region, wants=wants)

    @property
    def free(self) -> int:
        return test_lender.free(self.redis, self.berth)

    @property
    def open(self) -> int:
        return test_lender.open_of(self.berth)


@dataclass
class Drill:
    """Whom a step belongs to, its name, and whether the kill comes before or after it."""

    owner: Any
    name: str
    after: bool

    def __call__(self, work: Callable[[], object]) -> None:
        """Do the work in a process that is killed at the step, and wait for the end of what it held."""
        pid = os.fork()
        if pid == 0:
            try:
                self._child(work)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), f"{self.name} was never reached"
        assert os.WTERMSIG(status) == signal.SIGKILL
        # The dead one's locks go with its server process.
        wait_until(lambda: one(OTHERS_LOCKS) == 0, "the end of the dead one's session")

    def _child(self, work: Callable[[], object]) -> None:
        PARENTS.append(connection.connection)
        connection.connection = None
        run("SET ROLE moorage_system")
        original = getattr(self.owner, self.name)

        def dies(*args: Any, **options: Any) -> None:
            if self.after:
                original(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(self.owner, self.name, dies)
        work()


def at(steps: list[tuple[Any, str]]) -> Any:
    """Both sides of every step, each a case with its name."""
    drills = [Drill(owner, name, after) for owner, name in steps for after in (False, True)]
    return pytest.mark.parametrize(
        "kill", drills, ids=[f"{'after' if drill.after else 'before'} {drill.name}" for drill in drills]
    )


@pytest.fixture
def lent(no_boots: None, gateway_redis: "redis.Redis", region: str) -> Lent:
    """A tenant with 1,000 pico-units, 400 of them in a float."""
    lent = Lent(harbour(money=1000), gateway_redis, region)
    lent.lender(want(lent.berth, 400))
    return lent


@at(PULL)
def test_fault_4_a_meter_killed_anywhere_books_everything_once(journal: tuple[Journal, Gateway], kill: Drill) -> None:
    world, gateway = journal
    world.add(3)
    kill(lambda: gateway_pull(gateway))
    gateway_pull(gateway)
    assert world.berth.posted()["revenue"] == sum(int(event["quoted_pico"]) for event in world.events)
    assert ReceiptTree.objects.get(tenant_id=world.berth.tenant_id).size == 4
    assert (row_of(world).pulled_seq, world.freed) == (3, 3)


@at(LEND)
def test_a_lender_killed_while_it_lends_strands_and_never_doubles(lent: Lent, kill: Drill) -> None:
    kill(lambda: lent.lender(want(lent.berth, 600)))
    assert lent.free <= lent.open <= 1000
    for _ in range(2):
        assert not lent.lender().fenced
    lent.lender(want(lent.berth, 2000))
    assert lent.free == lent.open == 1000


@at(RETURN)
def test_a_lender_killed_while_it_takes_back_strands_and_never_doubles(lent: Lent, kill: Drill) -> None:
    kill(lambda: lent.lender(recall_of(lent.berth, 300)))
    assert lent.free <= lent.open <= 1000
    assert not lent.lender().fenced
    lent.lender(recall_of(lent.berth, 300))
    assert lent.free == lent.open <= 100
    assert lent.redis.hgetall(wire.pending(name_of(lent.berth))) == {}


@at(SEAL)
def test_a_lender_killed_while_it_fences_and_closes_lends_nothing_twice(lent: Lent, kill: Drill) -> None:
    lent.redis.delete(name_of(lent.berth))
    kill(lambda: lent.lender(want(lent.berth, 2000)))
    lent.lender(want(lent.berth, 2000))
    assert lent.free <= lent.open <= 1000
    for _ in range(2):
        lent.lender(want(lent.berth, 2000))
    assert lent.free == lent.open == 1000


@at(RECLAIM)
def test_a_lender_killed_while_it_ends_reservations_gives_each_back_once(lent: Lent, kill: Drill) -> None:
    boot(lent.berth, posted_ago_s=0)
    for _ in range(3):
        reserve(lent.redis, lent.berth, new_id(), 100, expired_s=601)
    kill(lent.lender)
    for _ in range(2):
        lent.lender()
    assert lent.free == lent.open == 400


@at(TIME)
def test_dedicated_time_whose_timer_is_killed_anywhere_is_billed_once(database: None, kill: Drill) -> None:
    berth, deployment, pod = harbour(money=10_000), uuid4(), uuid4()
    sheet = dedicated(berth, 3600)
    place(berth, sheet, deployment)
    other = uuid4()
    place(berth, sheet, other, 100)
    services.hold_close(deployment_id=other)
    fact(berth, sheet, "from", clock("12:30"), pod=pod, deployment=deployment)
    fact(berth, sheet, "alive", clock("13:30"), pod=pod, deployment=deployment)
    kill(lambda: rate(clock("13:30")))
    rate(clock("13:30"))
    assert booked(deployment) == [("12:30:00", "13:00:00", 1800, 1800)]
    assert berth.posted() == {"prepaid": 8200, "revenue": 1800}
    assert open_of(deployment) == 3600
    fact(berth, sheet, "to", clock("13:30"), pod=pod, deployment=deployment)
    rate(clock("13:31"))
    assert berth.posted()["revenue"] == 3600


@at(CLOSE)
def test_a_month_whose_close_is_killed_anywhere_is_billed_once_and_no_number_is_lost(
    database: None, kill: Drill
) -> None:
    berth = harbour()
    now = month_of(utcnow())[0] + timedelta(days=4)
    invoice, event_id = issued(berth)
    before = last_number(invoice)
    usage_correct(event_id=event_id, counts={OUT: -20_000}, actor="ann", reason="garbled")
    other = harbour()
    last_month(other, counts={OUT: 30_000})
    kill(lambda: month_close(now=now))
    month_close(now=now)
    month_close(now=now)
    (bill,) = Invoice.objects.filter(tenant_id=other.tenant_id)
    assert (bill.status, bill.total_minor) == ("issued", 1)
    assert Invoice.objects.get(tenant_id=berth.tenant_id, kind="credit_note").corrects_id == invoice.id
    assert (
        last_number(invoice) - before
        == Invoice.objects.filter(
            number__gt=f"{invoice.number}", number__startswith=f"M{invoice.period.lower:%Y}-"
        ).count()
    )
