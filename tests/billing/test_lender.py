"""The float: money on loan is never doubled and never lost, wherever the lender or Redis stops."""

import signal
import subprocess
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis
from django.db import connection

from billing import lender, recall, services
from billing.floats import Fenced, Floats
from billing.lender import Purse, lender_pass
from billing.models import GatewayJournal, Hold, LedgerTx
from controlplane.embedded.redis import Redis
from kernel import wire
from kernel.clock import utcnow
from kernel.ids import new_id
from kernel.pricing import Sheet
from kernel.problems import Problem
from tests.billing.harbour import LONG_AGO, Harbour, dedicated, harbour, one, run
from tests.billing.test_spans import place
from tests.conftest import as_role
from tests.services import redis_server, wait_until


def want(berth: Harbour, amount: int) -> list[wire.Want]:
    return [wire.Want(str(berth.tenant_id), "general", "USD", amount)]


def name_of(berth: Harbour) -> str:
    return wire.float_key(berth.tenant_id, "general", "USD")


def float_of(client: "redis.Redis", berth: Harbour) -> dict[str, str]:
    return wire.decode_hash(client.hgetall(name_of(berth)))


def free(client: "redis.Redis", berth: Harbour) -> int:
    return int(float_of(client, berth).get("free", 0))


def open_of(berth: Harbour) -> int:
    return int(one("SELECT COALESCE(sum(held), 0) FROM ledger_account WHERE tenant_id = %s", berth.tenant_id))


def test_what_is_wanted_is_lent_up_to_the_last_pico_and_then_the_float_is_dry(
    database: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour(money=1000)
    done = lender_pass(gateway_redis, region=region, wants=want(berth, 600))
    assert done.fenced
    assert done.lent == 600
    assert float_of(gateway_redis, berth) == {"gen": "1", "transfer": "1", "free": "600", "dry": "0"}
    lender_pass(gateway_redis, region=region, wants=want(berth, 300) + want(berth, 300))
    assert float_of(gateway_redis, berth) == {"gen": "1", "transfer": "2", "free": "1000", "dry": "1"}
    lender_pass(gateway_redis, region=region, wants=want(berth, 1))
    assert free(gateway_redis, berth) == open_of(berth) == 1000
    assert gateway_redis.get(wire.FLOAT_RUN).decode() == lender.redis_run_id(gateway_redis)


def test_a_tenant_without_any_money_or_account_gets_a_dry_float(
    database: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour(money=0)
    lender_pass(gateway_redis, region=region, wants=want(berth, 5))
    assert float_of(gateway_redis, berth) == {"gen": "1", "transfer": "0", "free": "0", "dry": "1"}


def test_a_top_up_clears_dry_and_is_lent_as_one_more_place_of_the_same_hold(
    database: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour(money=10)
    lender_pass(gateway_redis, region=region, wants=want(berth, 10))
    services.topup(tenant_id=berth.tenant_id, currency="USD", amount_pico=5, idem_key="more", actor="t")
    lender_pass(gateway_redis, region=region)
    assert float_of(gateway_redis, berth)["dry"] == "0"
    lender_pass(gateway_redis, region=region, wants=want(berth, 5))
    assert float_of(gateway_redis, berth) == {"gen": "1", "transfer": "2", "free": "15", "dry": "1"}
    (hold,) = Hold.objects.filter(account__tenant_id=berth.tenant_id)
    assert [(move.kind, move.amount) for move in hold.moves.order_by("seq")] == [("place", 10), ("place", 5)]


def test_a_float_is_refilled_to_ten_minutes_of_spend_once_half_of_it_is_gone(
    database: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour()
    cost = berth.event().quoted_pico
    lender_pass(gateway_redis, region=region, wants=want(berth, cost))
    berth.ingest(berth.event())
    gateway_redis.hincrby(name_of(berth), "free", -(cost * 6 // 10))
    lender_pass(gateway_redis, region=region)
    assert free(gateway_redis, berth) == cost + cost * 4 // 10
    assert lender_pass(gateway_redis, region=region).lent == 0


def test_wants_are_popped_whole_and_waiting_ends(database: None, gateway_redis: "redis.Redis") -> None:
    assert lender.wants_wait(gateway_redis, timeout_s=1) == []
    asked = [wire.Want("t", "general", "USD", n) for n in (1, 2, 3)]
    gateway_redis.rpush(wire.WANT, *[wire.dumps(item) for item in asked])
    assert lender.wants_wait(gateway_redis) == asked


class Killed(BaseException):
    """The lender ends here: no handler of the product may catch it."""


def test_an_idle_float_comes_back_and_one_in_use_stays(
    database: None, gateway_redis: "redis.Redis", region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    assert lender_pass(gateway_redis, region=region).returned == 0
    monkeypatch.setattr(lender, "RECENT", timedelta(0))
    assert lender_pass(gateway_redis, region=region).returned == 400
    assert (free(gateway_redis, berth), open_of(berth)) == (0, 0)


def test_money_reserved_meanwhile_is_not_taken_back(database: None, gateway_redis: "redis.Redis", region: str) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    floats = Floats(gateway_redis, run_id=lender.redis_run_id(gateway_redis), generation=1)
    gateway_redis.hincrby(name_of(berth), "free", -1)
    purse = Purse(berth.tenant_id, "general", "USD", region)
    assert lender.take_back(floats, purse, transfer=2, amount=400) == 0
    assert (free(gateway_redis, berth), open_of(berth)) == (399, 400)
    assert lender.take_back(floats, purse, transfer=2, amount=399) == 399
    assert (free(gateway_redis, berth), open_of(berth)) == (0, 1)


def test_fault_7_after_flushall_a_new_generation_begins_and_the_old_holds_are_sealed(
    database: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    gateway_redis.flushdb()
    done = lender_pass(gateway_redis, region=region, wants=want(berth, 100))
    assert done.fenced
    assert float_of(gateway_redis, berth) == {"gen": "2", "transfer": "1", "free": "100", "dry": "0"}
    holds = Hold.objects.filter(subject=f"gateway:general:{region}").order_by("generation")
    assert [(hold.generation, hold.sealed_at is None, hold.open) for hold in holds][1] == (2, True, 100)
    assert holds[0].sealed_at is not None


def test_a_float_that_vanished_alone_is_never_lent_again(
    database: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    gateway_redis.delete(name_of(berth))
    assert lender_pass(gateway_redis, region=region, wants=want(berth, 1)).fenced
    assert float_of(gateway_redis, berth)["gen"] == "2"
    assert free(gateway_redis, berth) <= 600


def test_fault_9_a_redis_that_comes_back_older_is_fenced_and_old_events_do_not_touch_the_new_generation(
    database: None, region: str, tmp_path: Path
) -> None:
    berth = harbour(money=1000)
    with redis_server(tmp_path) as server:
        client = redis.Redis.from_url(server.url(0))
        lender_pass(client, region=region, wants=want(berth, 300))
        client.config_set("appendonly", "no")
        client.save()
        old_run = lender.redis_run_id(client)
        lender_pass(client, region=region, wants=want(berth, 300))
        client.close()
    for path in tmp_path.glob("appendonly*"):
        path.unlink()
    config = tmp_path / "redis.conf"
    config.write_text(config.read_text().replace("appendonly yes", "appendonly no"))
    with Again(tmp_path, server.port) as client:
        assert client.get(wire.FLOAT_RUN).decode() == old_run != lender.redis_run_id(client)
        assert free(client, berth) == 300
        done = lender_pass(client, region=region, wants=want(berth, 1000))
        assert done.fenced
        # The old generation's 600 may still be drawn for what is on its way; only the rest is lent anew.
        assert float_of(client, berth) == {"gen": "2", "transfer": "1", "free": "400", "dry": "1"}


class Again:
    """The same data folder served by a new process."""

    def __init__(self, folder: Path, port: int) -> None:
        self.redis = Redis(folder, port, "tests")

    def __enter__(self) -> "redis.Redis":
        self.process = subprocess.Popen(self.redis.command(), stdout=subprocess.DEVNULL)
        wait_until(self.redis.is_ready, "redis")
        self.client = redis.Redis.from_url(self.redis.url(0))
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


def sealed_world(client: "redis.Redis", region: str, sealed_ago_s: int = 60) -> Harbour:
    """A tenant whose 400 lie in a hold that was sealed a while ago, and the one boot that is known."""
    GatewayJournal.objects.create(gateway_id=f"gw-{region}", boot_id=new_id())
    berth = harbour(money=1000)
    lender_pass(client, region=region, wants=want(berth, 400))
    client.flushdb()
    lender_pass(client, region=region)
    run(
        "UPDATE hold SET sealed_at = now() - make_interval(secs => %s) WHERE subject = %s",
        sealed_ago_s,
        f"gateway:general:{region}",
    )
    return berth


@pytest.mark.parametrize(
    ("columns", "closes"),
    [
        ({"posted_low_at": -1000, "run_id": "ours"}, False),
        ({"posted_low_at": -56, "run_id": "ours"}, False),
        ({"posted_low_at": -54, "run_id": "ours"}, True),
        ({"posted_low_at": 0, "run_id": "another"}, False),
        ({"closed_seq": 5, "pulled_seq": 4}, False),
        ({"closed_seq": 0, "pulled_seq": 0}, True),
        ({}, False),
    ],
)
def test_a_sealed_hold_closes_once_every_boot_is_posted_beyond_it_on_the_new_redis(
    no_boots: None, gateway_redis: "redis.Redis", region: str, columns: dict[str, object], closes: bool
) -> None:
    berth = sealed_world(gateway_redis, region)
    values = dict(columns) | {"seen_at": utcnow()}
    if "posted_low_at" in values:
        values["posted_low_at"] = utcnow() + timedelta(seconds=int(str(values["posted_low_at"])))
    if values.get("run_id") == "ours":
        values["run_id"] = lender.redis_run_id(gateway_redis)
    if "closed_seq" in values:
        values["closed_at"] = utcnow()
    GatewayJournal.objects.filter(gateway_id=f"gw-{region}").update(**values)
    assert lender_pass(gateway_redis, region=region).closed == int(closes)
    assert open_of(berth) == (0 if closes else 400)


def test_a_boot_that_the_meter_has_not_seen_for_hours_may_still_admit_and_is_waited_for(
    no_boots: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = sealed_world(gateway_redis, region)
    GatewayJournal.objects.update(seen_at=utcnow() - timedelta(hours=9))
    assert lender_pass(gateway_redis, region=region).closed == 0
    assert open_of(berth) == 400


def test_a_boot_that_is_gone_is_waited_for_until_the_hold_expires(
    no_boots: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = sealed_world(gateway_redis, region)
    assert lender_pass(gateway_redis, region=region).closed == 0
    run("UPDATE hold SET expires_at = now() - interval '1 second' WHERE subject = %s", f"gateway:general:{region}")
    assert lender_pass(gateway_redis, region=region).closed == 1
    assert open_of(berth) == 0


def reserve(client: "redis.Redis", berth: Harbour, request: UUID, amount: int, *, expired_s: int, gen: int = 1) -> None:
    """What admission leaves in Redis, its expiry so long ago."""
    client.hincrby(name_of(berth), "free", -amount)
    expiry_ms = int(utcnow().timestamp() * 1000) - expired_s * 1000
    client.hset(wire.reservations(name_of(berth)), str(request), f"{gen}|{amount}|{expiry_ms}")


def reserved(client: "redis.Redis", berth: Harbour) -> set[str]:
    return {key.decode() for key in client.hkeys(wire.reservations(name_of(berth)))}


def boot(berth: Harbour, *, posted_ago_s: int | None, **columns: object) -> None:
    low = None if posted_ago_s is None else utcnow() - timedelta(seconds=posted_ago_s)
    GatewayJournal.objects.create(gateway_id=berth.gateway_id, boot_id=new_id(), posted_low_at=low, **columns)


def test_reservations_of_requests_that_cannot_be_running_go_back(
    no_boots: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    boot(berth, posted_ago_s=590)
    old, new, other, late = uuid4(), uuid4(), uuid4(), uuid4()
    reserve(gateway_redis, berth, old, 100, expired_s=601)
    reserve(gateway_redis, berth, new, 100, expired_s=0)
    reserve(gateway_redis, berth, late, 100, expired_s=599)
    reserve(gateway_redis, berth, other, 0, expired_s=601, gen=0)
    for _ in range(2):
        lender_pass(gateway_redis, region=region)
    assert free(gateway_redis, berth) == 200
    assert reserved(gateway_redis, berth) == {str(new), str(late)}


@pytest.mark.parametrize(
    ("posted_ago_s", "columns", "goes_back"),
    [
        (None, {}, False),
        (610, {}, False),
        (603, {}, False),
        (590, {}, True),
        (None, {"closed_seq": 5, "pulled_seq": 4, "closed_at": utcnow()}, False),
        (None, {"closed_seq": 5, "pulled_seq": 5, "closed_at": utcnow()}, True),
    ],
)
def test_an_expired_reservation_without_an_event_waits_until_every_boot_is_posted_beyond_it(
    no_boots: None,
    gateway_redis: "redis.Redis",
    region: str,
    posted_ago_s: int | None,
    columns: dict[str, object],
    goes_back: bool,
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    boot(berth, posted_ago_s=0)
    boot(berth, posted_ago_s=posted_ago_s, **columns)
    reserve(gateway_redis, berth, uuid4(), 400, expired_s=607)
    lender_pass(gateway_redis, region=region)
    assert free(gateway_redis, berth) == (400 if goes_back else 0)


def test_a_gateway_killed_between_close_and_settle_gives_back_only_what_the_request_did_not_cost(
    no_boots: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour()
    event = berth.event(region=region)
    published = Sheet(berth.sku, region, "USD", LONG_AGO, berth.sheet.meters)
    event = replace(event, sheet=services.sheet_publish(sheet=published, actor="t"))
    cost, amount = event.quoted_pico, 3 * event.quoted_pico
    lender_pass(gateway_redis, region=region, wants=want(berth, amount))
    boot(berth, posted_ago_s=None)
    reserve(gateway_redis, berth, event.subject_id, amount, expired_s=601)
    lender_pass(gateway_redis, region=region)
    assert free(gateway_redis, berth) == 0
    assert berth.ingest(event).booked == 1
    lender_pass(gateway_redis, region=region)
    # The float and its hold agree to the pico: nothing can be spent twice.
    assert free(gateway_redis, berth) == open_of(berth) == amount - cost
    assert reserved(gateway_redis, berth) == set()


def test_the_money_of_an_event_in_quarantine_waits_for_a_person(
    no_boots: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour()
    event = berth.event(quoted_pico=1)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    boot(berth, posted_ago_s=0)
    reserve(gateway_redis, berth, event.subject_id, 400, expired_s=601)
    assert berth.ingest(event).quarantined == 1
    lender_pass(gateway_redis, region=region)
    assert (free(gateway_redis, berth), reserved(gateway_redis, berth)) == (0, {str(event.subject_id)})


def recall_of(berth: Harbour, amount: int) -> list[wire.Want]:
    return [wire.Want(str(berth.tenant_id), "general", "USD", -amount)]


def test_free_money_comes_back_where_it_is_asked_for_and_what_is_reserved_stays(
    database: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 1000))
    reserve(gateway_redis, berth, uuid4(), 300, expired_s=-60)
    assert float_of(gateway_redis, berth)["dry"] == "1"
    assert lender_pass(gateway_redis, region=region, wants=recall_of(berth, 200)).returned == 200
    assert (free(gateway_redis, berth), open_of(berth)) == (500, 800)
    assert float_of(gateway_redis, berth)["dry"] == "0"
    assert lender_pass(gateway_redis, region=region, wants=recall_of(berth, 9000), sweep=False).returned == 500
    assert (free(gateway_redis, berth), open_of(berth)) == (0, 300)
    assert lender_pass(gateway_redis, region=region, wants=recall_of(berth, 1), sweep=False).returned == 0


def test_a_rich_tenant_whose_money_is_lent_out_gets_its_deployment(
    database: None, gateway_redis: "redis.Redis", lender_at_work: None
) -> None:
    berth, deployment = harbour(money=5000), uuid4()
    sheet = dedicated(berth, 3600)
    gateway_redis.rpush(wire.WANT, wire.dumps(want(berth, 5000)[0]))
    wait_until(lambda: free(gateway_redis, berth) == 5000, "lending")
    with as_role("web", tenant_id=berth.tenant_id):
        place(berth, sheet, deployment)
        place(berth, sheet, deployment)
    wait_until(lambda: free(gateway_redis, berth) == 1400, "the rest")
    assert berth.held() == {"prepaid": 5000}
    with as_role("web", tenant_id=berth.tenant_id), pytest.raises(Problem, match="missing"):
        place(berth, sheet, uuid4())


def test_a_top_up_that_is_lent_out_is_taken_back_for_its_refund_but_for_what_is_reserved(
    database: None, gateway_redis: "redis.Redis", lender_at_work: None
) -> None:
    berth = harbour(money=5000)
    services.promo_grant(tenant_id=berth.tenant_id, currency="USD", amount_pico=300, idem_key="p", actor="t")
    gateway_redis.rpush(wire.WANT, wire.dumps(want(berth, 5000)[0]))
    wait_until(lambda: free(gateway_redis, berth) == 5000, "lending")
    top_up = LedgerTx.objects.get(tenant_id=berth.tenant_id, kind="topup").id
    request = new_id()
    reserve(gateway_redis, berth, request, 301, expired_s=-60)
    with pytest.raises(Problem, match=r"0\.000000000001 USD of this top-up are spent or set aside"):
        services.topup_reverse(tx_id=top_up, actor="ann")
    gateway_redis.hdel(wire.reservations(name_of(berth)), str(request))
    gateway_redis.hincrby(name_of(berth), "free", 301)
    services.topup_reverse(tx_id=top_up, actor="ann")
    assert berth.posted() == {"promo": 300}


def test_a_recall_that_cannot_be_asked_for_is_a_refusal_not_an_error(
    database: None, gateway_redis: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    berth = harbour(money=5000)
    sheet = dedicated(berth, 3600)
    berth.hold(5000)
    nobody = redis.Redis.from_url("redis://127.0.0.1:9", socket_connect_timeout=1)
    monkeypatch.setattr(recall, "_client", lambda: nobody)
    with pytest.raises(Problem, match="insufficient_balance"):
        place(berth, sheet, uuid4())


@pytest.mark.parametrize("after", ["delete", "seal", "wipe"])
def test_a_fence_killed_between_any_two_steps_is_done_again_and_nobody_is_let_in_meanwhile(
    no_boots: None, gateway_redis: "redis.Redis", region: str, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    berth = harbour(money=1000)
    boot(berth, posted_ago_s=None)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    gateway_redis.delete(name_of(berth))
    next_step = {"delete": (lender.holds, "gateway_holds_seal"), "seal": (lender.redis_floats, "wipe")}.get(after)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if next_step:
            patch.setattr(*next_step, killed)
        else:
            patch.setattr(gateway_redis, "set", killed, raising=False)
        with pytest.raises(Killed):
            lender_pass(gateway_redis, region=region, wants=want(berth, 1))
    assert gateway_redis.get(wire.FLOAT_RUN) is None
    assert lender_pass(gateway_redis, region=region, wants=want(berth, 1000)).fenced
    sealed = Hold.objects.get(subject=f"gateway:general:{region}", sealed_at__isnull=False)
    assert (sealed.generation, sealed.open) == (1, 400)
    # Sealed before anything was wiped: what the old generation holds is never lent again beside it.
    assert float_of(gateway_redis, berth)["free"] == "600"


def test_nothing_is_lent_while_the_clocks_lie_apart(
    database: None, gateway_redis: "redis.Redis", region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    berth = harbour(money=1000)
    monkeypatch.setattr(gateway_redis, "time", lambda: (int(utcnow().timestamp()) - 4, 0), raising=False)
    assert lender_pass(gateway_redis, region=region, wants=want(berth, 400)).lent == 0
    assert open_of(berth) == 0


def test_a_second_lender_of_a_region_stands_aside(database: None, gateway_redis: "redis.Redis", region: str) -> None:
    berth = harbour(money=1000)
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        try:
            with lender.alone("lender", region) as granted:
                assert granted
                inside.set()
                leave.wait(10)
        finally:
            connection.close()

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    assert lender_pass(gateway_redis, region=region, wants=want(berth, 400)).lent == 0
    leave.set()
    thread.join()
    assert lender_pass(gateway_redis, region=region, wants=want(berth, 400)).lent == 400


def test_a_script_of_an_older_generation_or_run_changes_nothing(
    database: None, gateway_redis: "redis.Redis", region: str
) -> None:
    berth = harbour(money=1000)
    lender_pass(gateway_redis, region=region, wants=want(berth, 400))
    run_id = lender.redis_run_id(gateway_redis)
    for floats in (
        Floats(gateway_redis, run_id=run_id, generation=2),
        Floats(gateway_redis, run_id="another", generation=1),
    ):
        for call in (
            lambda floats=floats: floats.lend(name_of(berth), transfer=2, amount=5),
            lambda floats=floats: floats.take(name_of(berth), transfer=2, amount=5),
            lambda floats=floats: floats.mark_dry(name_of(berth), dry=True),
            lambda floats=floats: floats.open(name_of(berth)),
        ):
            with pytest.raises(Fenced):
                call()
    assert float_of(gateway_redis, berth) == {"gen": "1", "transfer": "1", "free": "400", "dry": "0"}
