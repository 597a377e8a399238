"""The meter pulls journals over HTTP: positions, acknowledgements, gaps, silence, what gateways report."""

import json
import threading
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connection
from urllib3.exceptions import HTTPError

from billing import ledger, meter
from billing.meter import Gateway, JournalError, gateway_pull
from billing.models import GatewayJournal, Quarantine
from kernel.clock import from_ms
from tenants.models import Outbox
from tests.billing.harbour import as_system_in_a_thread, harbour
from tests.billing.journal import TOKEN, Journal
from tests.services import wait_until


def row_of(world: Journal) -> GatewayJournal:
    return GatewayJournal.objects.get(gateway_id=world.berth.gateway_id, boot_id=world.berth.boot_id)


def test_everything_is_booked_page_by_page_then_acknowledged(
    journal: tuple[Journal, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, gateway = journal
    monkeypatch.setattr(meter, "PAGE", 2)
    world.add(5)
    assert gateway_pull(gateway).booked == 5
    assert world.freed == 5
    row = row_of(world)
    assert (row.pulled_seq, row.closed_seq, row.run_id) == (5, None, "run-1")
    assert row.posted_low_at == from_ms(world.low_ms)
    world.add(1)
    world.closed = True
    assert gateway_pull(gateway).booked == 1
    assert row_of(world).closed_seq == 6
    assert gateway_pull(gateway).booked == 0


def test_a_boot_is_known_before_it_has_written_anything(journal: tuple[Journal, Gateway]) -> None:
    world, gateway = journal
    world.run_id = None
    gateway_pull(gateway)
    assert (row_of(world).pulled_seq, row_of(world).run_id) == (0, "")


def test_fault_4_a_meter_killed_after_the_commit_pulls_on_from_there(
    journal: tuple[Journal, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, gateway = journal
    world.add(3)

    class Killed(BaseException):
        pass

    original = meter.events_ingest

    def killed(*args: Any, **options: Any) -> None:
        original(*args, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(meter, "events_ingest", killed)
        with pytest.raises(Killed):
            gateway_pull(gateway)
    assert row_of(world).pulled_seq == 3
    assert row_of(world).posted_low_at is None
    done = gateway_pull(gateway)
    assert (done.booked, done.repeated) == (0, 0)
    assert world.freed == 3


def alarm_of(world: Journal, after: int) -> str:
    row = Outbox.objects.get(dedupe_key=f"journal:{world.berth.gateway_id}/{world.berth.boot_id}/{after}")
    return str(row.payload["sentence"])


def test_a_gap_stops_the_boot_raises_the_alarm_and_nothing_beyond_it_is_booked(
    journal: tuple[Journal, Gateway],
) -> None:
    world, gateway = journal
    world.add(2)
    world.first_seq = 2
    for _ in range(2):
        assert gateway_pull(gateway).booked == 0
    assert "stops after 0: a gap" in alarm_of(world, 0)
    assert (row_of(world).pulled_seq, row_of(world).posted_low_at) == (0, None)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (b"no JSON", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b'{"events": [{"seq": 1}]}', "without number or event"),
        (b'{"events": 7}', "without number or event"),
    ],
)
def test_a_boot_that_cannot_be_read_stops_no_other_boot_of_its_gateway(
    journal: tuple[Journal, Gateway], page: bytes, says: str
) -> None:
    world, gateway = journal
    world.broken[str(uuid4())] = page
    world.add(2)
    assert gateway_pull(gateway).booked == 2
    assert row_of(world).pulled_seq == 2
    # Nothing counts as posted while a boot may still hold usage.
    assert row_of(world).posted_low_at is None
    alarm = Outbox.objects.get(dedupe_key=f"journal:{world.berth.gateway_id}/{next(iter(world.broken))}/0")
    assert says in alarm.payload["sentence"]


def test_a_lone_surrogate_hides_no_record_beside_it(journal: tuple[Journal, Gateway]) -> None:
    world, gateway = journal
    world.add(2)
    world.events[0]["finish"] = "\ud800"
    done = gateway_pull(gateway)
    assert (done.booked, done.quarantined) == (1, 1)
    kept = Quarantine.objects.get(gateway_id=world.berth.gateway_id)
    assert json.loads(kept.payload)["finish"] == "\ud800"


@pytest.mark.parametrize("boots", [None, [{}], [{"boot_id": "x", "head": 1, "closed": False}], 3])
def test_a_gateway_that_tells_no_boots_is_an_error(journal: tuple[Journal, Gateway], boots: Any) -> None:
    world, gateway = journal
    world.boots = boots
    with pytest.raises(JournalError, match="told no boots"):
        gateway_pull(gateway)


@pytest.mark.parametrize("token", ["wrong"])
def test_an_answer_that_is_no_journal_is_an_error(journal: tuple[Journal, Gateway], token: str) -> None:
    _, gateway = journal
    with pytest.raises(JournalError, match="401"):
        gateway_pull(Gateway(gateway.url, token))
    with pytest.raises(HTTPError):
        gateway_pull(Gateway("http://127.0.0.1:9", TOKEN))


def test_a_boot_that_another_meter_pulls_is_left_to_it(journal: tuple[Journal, Gateway]) -> None:
    world, gateway = journal
    world.add(1)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        try:
            with meter.alone("meter", f"{world.berth.gateway_id}/{world.berth.boot_id}") as granted:
                assert granted
                inside.set()
                leave.wait(10)
        finally:
            connection.close()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    assert gateway_pull(gateway).booked == 0
    assert row_of(world).posted_low_at is None
    leave.set()
    thread.join()
    assert gateway_pull(gateway).booked == 1


def test_alarms_are_logged_once(database: None, caplog: pytest.LogCaptureFixture) -> None:
    berth = harbour(money=0)
    berth.ingest(berth.event())
    while meter.alarms_log():
        pass
    assert f"of {berth.tenant_id} had no hold" in caplog.text
    assert not Outbox.objects.filter(topic=ledger.ALARM, published_at=None).exists()


def test_the_loop_books_from_one_gateway_while_another_is_silent(
    journal: tuple[Journal, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, gateway = journal
    world.add(3)
    monkeypatch.setattr(settings, "GATEWAY_INTERNAL_URLS", ["http://127.0.0.1:9", gateway.url])
    monkeypatch.setattr(settings, "INTERNAL_TOKEN", TOKEN)
    with as_system_in_a_thread(meter.run):
        wait_until(lambda: world.freed == 3, "the acknowledgement")
    assert world.berth.posted()["revenue"] == sum(int(event["quoted_pico"]) for event in world.events)
