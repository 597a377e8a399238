"""kill -9 of the meter and the lender, before and after each of their steps: the next one finishes what was begun."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import redis
from django.db import connection

from billing import floats as redis_floats
from billing import holds, ingest, lender, meter, posting
from billing.floats import Floats
from billing.lender import lender_pass
from billing.meter import Gateway, gateway_pull
from billing.models import ReceiptTree
from kernel import wire
from kernel.ids import new_id
from tests.billing.harbour import harbour, one, run
from tests.billing.journal import Journal
from tests.billing.test_lender import boot, free, name_of, open_of, recall_of, reserve, want
from tests.billing.test_meter import row_of
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


def named(steps: list[tuple[Any, str]]) -> Any:
    """Both sides of every step, each a case with its name."""
    cases = [(owner, name, after) for owner, name in steps for after in (False, True)]
    ids = [f"{'after' if after else 'before'} {name}" for _, name, after in cases]
    return pytest.mark.parametrize(("owner", "name", "after"), cases, ids=ids)


@pytest.fixture
def kill_at(database: None) -> Callable[..., None]:
    """Run work in a process that is killed at a step. What is of the parent's connection stays its own."""
    kept = []

    def child(owner: Any, name: str, after: bool, work: Callable[[], object]) -> None:
        kept.append(connection.connection)
        connection.connection = None
        run("SET ROLE moorage_system")
        original = getattr(owner, name)

        def dies(*args: Any, **options: Any) -> None:
            if after:
                original(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, dies)
        work()

    def kill(owner: Any, name: str, after: bool, work: Callable[[], object]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                child(owner, name, after, work)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), f"{name} was never reached"
        assert os.WTERMSIG(status) == signal.SIGKILL
        # The dead one's locks go with its server process.
        wait_until(lambda: one(OTHERS_LOCKS) == 0, "the end of the dead one's session")

    return kill


@named(PULL)
def test_fault_4_a_meter_killed_anywhere_books_everything_once(
    journal: tuple[Journal, Gateway], kill_at: Callable[..., None], owner: Any, name: str, after: bool
) -> None:
    world, gateway = journal
    world.add(3)
    kill_at(owner, name, after, lambda: gateway_pull(gateway))
    gateway_pull(gateway)
    assert world.berth.posted()["revenue"] == sum(int(event["quoted_pico"]) for event in world.events)
    assert ReceiptTree.objects.get(tenant_id=world.berth.tenant_id).size == 4
    assert (row_of(world).pulled_seq, world.freed) == (3, 3)


@named(LEND)
def test_a_lender_killed_while_it_lends_strands_and_never_doubles(
    no_boots: None,
    kill_at: Callable[..., None],
    gateway_redis: "redis.Redis",
    region: str,
    owner: Any,
    name: str,
    after: bool,
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    kill_at(owner, name, after, lambda: lender_pass(gateway_redis, region=region, wants=want(berth, 600)))
    assert free(gateway_redis, berth) <= open_of(berth) <= 1000
    for _ in range(2):
        assert not lender_pass(gateway_redis, region=region).fenced
    lender_pass(gateway_redis, region=region, wants=want(berth, 2000))
    assert free(gateway_redis, berth) == open_of(berth) == 1000


@named(RETURN)
def test_a_lender_killed_while_it_takes_back_strands_and_never_doubles(
    no_boots: None,
    kill_at: Callable[..., None],
    gateway_redis: "redis.Redis",
    region: str,
    owner: Any,
    name: str,
    after: bool,
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    kill_at(owner, name, after, lambda: lender_pass(gateway_redis, region=region, wants=recall_of(berth, 300)))
    assert free(gateway_redis, berth) <= open_of(berth) <= 1000
    assert not lender_pass(gateway_redis, region=region).fenced
    lender_pass(gateway_redis, region=region, wants=recall_of(berth, 300))
    assert free(gateway_redis, berth) == open_of(berth) <= 100
    assert gateway_redis.hgetall(wire.pending(name_of(berth))) == {}


@named(SEAL)
def test_a_lender_killed_while_it_fences_and_closes_lends_nothing_twice(
    no_boots: None,
    kill_at: Callable[..., None],
    gateway_redis: "redis.Redis",
    region: str,
    owner: Any,
    name: str,
    after: bool,
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    gateway_redis.delete(name_of(berth))
    kill_at(owner, name, after, lambda: lender_pass(gateway_redis, region=region, wants=want(berth, 2000)))
    lender_pass(gateway_redis, region=region, wants=want(berth, 2000))
    assert free(gateway_redis, berth) <= open_of(berth) <= 1000
    for _ in range(2):
        lender_pass(gateway_redis, region=region, wants=want(berth, 2000))
    assert free(gateway_redis, berth) == open_of(berth) == 1000


@named(RECLAIM)
def test_a_lender_killed_while_it_ends_reservations_gives_each_back_once(
    no_boots: None,
    kill_at: Callable[..., None],
    gateway_redis: "redis.Redis",
    region: str,
    owner: Any,
    name: str,
    after: bool,
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    boot(berth, posted_ago_s=0)
    for _ in range(3):
        reserve(gateway_redis, berth, new_id(), 100, expired_s=601)
    kill_at(owner, name, after, lambda: lender_pass(gateway_redis, region=region))
    for _ in range(2):
        lender_pass(gateway_redis, region=region)
    assert free(gateway_redis, berth) == open_of(berth) == 400
