"""Ingest: exactly once, whatever arrives, in whatever order."""

import json
import threading
from dataclasses import fields, replace
from datetime import timedelta
from functools import cache, partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import ingest, invoicing, posting
from billing.core import receipts
from billing.ingest import Journalled, events_ingest
from billing.models import (
    HoldMove,
    Invoice,
    LedgerAccount,
    LedgerTx,
    Operation,
    Quarantine,
    RatedLine,
    ReceiptLeaf,
    ReceiptTree,
    UsageEvent,
)
from billing.operations import corrections_apply, operation_approve, operation_ask
from billing.services import sheet_publish, topup
from kernel.clock import month_of, utcnow
from kernel.ids import _layout, derived_id, new_id
from kernel.pricing import ACCEL_SECOND, IN_HIT, IN_MISS, OUT, Rate, Sheet
from kernel.problems import Problem
from kernel.usage import UsageEvent as UsageEventFact
from tenants.models import Outbox
from tests.billing.harbour import LONG_AGO, REGION, UNIT, Harbour, harbour, one

# 100 missed tokens at 280,000 and 20 answered at 420,000 pico.
COST = 100 * 280_000 + 20 * 420_000


def reasons(berth: Harbour) -> list[str]:
    rows = Quarantine.objects.filter(gateway_id=berth.gateway_id).order_by("journal_seq")
    return [row.reason for row in rows]


def test_a_request_becomes_lines_a_draw_two_entries_and_a_leaf(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    event = berth.event()
    done = berth.ingest(event)
    assert (done.booked, done.repeated, done.quarantined) == (1, 0, 0)
    assert berth.posted() == {"prepaid": 10 * UNIT - COST, "revenue": COST}
    assert berth.held() == {"prepaid": UNIT - COST}
    lines = RatedLine.objects.filter(event_id=event.event_id).order_by("meter")
    assert [(line.meter_id, line.quantity, line.amount) for line in lines] == [
        (IN_MISS, 100, 28_000_000),
        (OUT, 20, 8_400_000),
    ]
    leaf = ReceiptLeaf.objects.get(event_id=event.event_id)
    body = json.loads(bytes(leaf.body))
    assert body["lines"] == [["in_miss", "100", "280000", "1", "28000000"], ["out", "20", "420000", "1", "8400000"]]
    assert body["sheet"] == berth.sheet.sha256().hex()
    funding = ReceiptLeaf.objects.get(tree=leaf.tree, event=None)
    assert json.loads(bytes(funding.body))["parts"] == {"prepaid": str(COST)}


def test_a_batch_is_one_transaction_for_each_tenant_and_currency(database: None) -> None:
    berth, other = harbour(), harbour()
    euros = Sheet(berth.sku, REGION, "EUR", LONG_AGO, {IN_MISS: Rate(10), OUT: Rate(20)})
    sheet_publish(sheet=euros, actor="t")
    topup(tenant_id=berth.tenant_id, currency="EUR", amount_pico=10_000, idem_key="euros", actor="t")
    place = "SELECT hold_place(%s::uuid, 'EUR', 'gateway:general:local', 1, 1, 5000, false)"
    assert one(place, berth.tenant_id) == 5000
    for each in (berth, other):
        each.hold(UNIT)
    # 100 missed tokens at 10 and 20 answered at 20 pico.
    in_euros = {"currency": "EUR", "sheet": euros.sha256(), "quoted_pico": 1400}
    records = [each.record(each.event(**price)) for _ in range(2) for each, price in ((berth, {}), (berth, in_euros))]
    assert events_ingest([other.record(other.event()), *records]).booked == 5
    accounts = LedgerAccount.objects.filter(tenant_id=berth.tenant_id).exclude(posted=0)
    assert {(row.currency, row.kind): (row.posted, row.held) for row in accounts} == {
        ("USD", "prepaid"): (10 * UNIT - 2 * COST, UNIT - 2 * COST),
        ("USD", "revenue"): (2 * COST, 0),
        ("EUR", "prepaid"): (10_000 - 2800, 5000 - 2800),
        ("EUR", "revenue"): (2800, 0),
    }
    assert other.posted()["revenue"] == COST
    for each, transactions in ((berth, 2), (other, 1)):
        assert LedgerTx.objects.filter(tenant_id=each.tenant_id, kind="usage").count() == transactions
    invoicing.drafts_update()
    bills = Invoice.objects.filter(tenant_id=berth.tenant_id).order_by("currency")
    assert [(bill.currency, sum(line.amount_pico for line in bill.lines.all())) for bill in bills] == [
        ("EUR", 2800),
        ("USD", 2 * COST),
    ]


def test_fault_16_a_thousand_duplicates_have_one_effect(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    record = berth.record(berth.event())
    first = events_ingest([record] * 500)
    again = events_ingest([record] * 500)
    assert (first.booked, first.repeated) == (1, 499)
    assert (again.booked, again.repeated) == (0, 500)
    assert berth.posted() == {"prepaid": 10 * UNIT - COST, "revenue": COST}
    assert ReceiptTree.objects.get(tenant_id=berth.tenant_id).size == 2


def test_duplicates_from_many_meters_at_once_have_one_effect(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    records = [berth.record(berth.event()) for _ in range(20)]
    totals: list[int] = []

    def pull() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET ROLE moorage_system")
            totals.append(events_ingest(records).booked)
        finally:
            connection.close()

    threads = [threading.Thread(target=pull) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(totals) == [0, 0, 0, 0, 0, 20]
    assert berth.posted()["revenue"] == 20 * COST


def test_fault_17_events_in_reverse_order_are_all_booked(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    records = [berth.record(berth.event()) for _ in range(5)]
    for record in reversed(records):
        assert events_ingest([record]).booked == 1
    assert berth.posted()["revenue"] == 5 * COST


def test_fault_17_a_correction_before_its_original_waits_in_quarantine_and_applies_once(database: None) -> None:
    corrections_apply()  # what other tests left
    berth, ann = harbour(), f"ann-{uuid4()}"
    berth.hold(UNIT)
    event, never = berth.event(), berth.event()
    for missing in (event, never):
        arguments = {"event_id": str(missing.event_id), "counts": {OUT: -5}, "reason": "garbled"}
        parked = operation_ask(action="correct", arguments=arguments, actor=ann)
        assert isinstance(parked, Quarantine)
        assert parked.reason == f"a correction by {ann} waits for usage event {missing.event_id}"
    for _ in range(2):
        assert corrections_apply() == 0
    assert berth.posted() == {"prepaid": 10 * UNIT}
    berth.ingest(event)
    assert berth.posted()["revenue"] == COST
    assert corrections_apply() == 1
    assert berth.posted()["revenue"] == COST - 5 * 420_000
    for _ in range(2):
        assert corrections_apply() == 0
    berth.ingest(event)
    assert berth.posted()["revenue"] == COST - 5 * 420_000
    assert UsageEvent.objects.filter(corrects=event.event_id).count() == 1
    # What never came is still there to be seen, with its reason, and so is what was done with the other.
    waiting = Quarantine.objects.get(corrects=never.event_id)
    assert not Operation.objects.filter(id=waiting.id).exists()
    done = Operation.objects.get(id=Quarantine.objects.get(corrects=event.event_id).id)
    assert (done.status, done.asked_by, done.amount) == ("alone", ann, 5 * 420_000)


def test_fault_17_a_parked_correction_above_the_limit_still_needs_a_second_person(
    database: None, settings: Any
) -> None:
    settings.TWO_PERSON_ABOVE = "0.000001"
    berth, ann = harbour(), f"ann-{uuid4()}"
    berth.hold(UNIT)
    event = berth.event()
    arguments = {"event_id": str(event.event_id), "counts": {OUT: -20}, "reason": "garbled"}
    parked = operation_ask(action="correct", arguments=arguments, actor=ann)
    assert parked
    berth.ingest(event)
    assert [corrections_apply() for _ in range(2)] == [1, 0]
    assert berth.posted()["revenue"] == COST
    operation_approve(operation_id=parked.id, actor="bob")
    assert berth.posted()["revenue"] == COST - 20 * 420_000
    assert corrections_apply() == 0


def test_fault_17_a_parked_correction_that_takes_too_much_is_said_and_stops_no_other(database: None) -> None:
    berth, ann = harbour(), f"ann-{uuid4()}"
    berth.hold(UNIT)
    event = berth.event()
    asked = [{"event_id": str(event.event_id), "counts": {OUT: delta}, "reason": "garbled"} for delta in (-21, -1)]
    greedy, modest = (operation_ask(action="correct", arguments=arguments, actor=ann) for arguments in asked)
    assert greedy
    assert modest
    berth.ingest(event)
    assert corrections_apply() == 1
    assert berth.posted()["revenue"] == COST - 420_000
    assert "20 out are left" in Outbox.objects.get(dedupe_key__contains=str(greedy.id)).payload["sentence"]


def test_fault_17_a_correction_of_what_cannot_come_any_more_and_a_journalled_one_do_not_wait(database: None) -> None:
    berth = harbour()
    arguments = {"counts": {OUT: -5}, "reason": "garbled"}
    month = timedelta(days=35, seconds=1)
    for event_id, says in (
        (derived_id(utcnow() - month, "x"), "is 35 days"),
        (at(6), "ahead of us"),
        (UUID(int=0), "old$"),
        (UUID(int=2**128 - 1), "ahead of us"),
    ):
        with pytest.raises(Problem, match=says):
            operation_ask(action="correct", arguments=arguments | {"event_id": str(event_id)}, actor="ann")
    for wrong, says in (({"counts": {OUT: 5}}, "negative whole"), ({"reason": " "}, "a sentence")):
        with pytest.raises(Problem, match=says):
            operation_ask(action="correct", arguments=arguments | {"event_id": str(new_id())} | wrong, actor="ann")
    assert berth.ingest(berth.event(provenance="correction")).quarantined == 1
    assert "does not come from a gateway" in reasons(berth)[0]


def test_fault_18_the_same_id_with_another_payload_is_set_aside_and_the_first_stands(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    event = berth.event()
    berth.ingest(event)
    done = berth.ingest(replace(event, finish="length"))
    assert done.quarantined == 1
    assert reasons(berth) == ["same id, different payload"]
    assert UsageEvent.objects.get(event_id=event.event_id).finish == "stop"
    alarm = Outbox.objects.get(dedupe_key=f"quarantine:{berth.gateway_id}/{berth.boot_id}/2")
    assert "different payload" in alarm.payload["sentence"]


def test_a_second_original_of_one_attempt_is_set_aside(database: None) -> None:
    berth = harbour()
    event = berth.event()
    berth.ingest(event)
    other = berth.event(subject_id=event.subject_id)
    assert berth.ingest(other).quarantined == 1
    assert berth.ingest(berth.event(subject_id=event.subject_id, attempt=2)).booked == 1
    assert "has an original for attempt 1" in reasons(berth)[0]


def test_a_repeat_under_another_number_and_a_number_used_twice_are_set_aside(database: None) -> None:
    berth = harbour()
    event = berth.event()
    record = berth.record(event)
    events_ingest([record])
    assert berth.ingest(event).quarantined == 1
    assert events_ingest([Journalled(berth.gateway_id, berth.boot_id, 1, berth.event().to_json())]).quarantined == 1
    assert reasons(berth) == ["journal number 1 carried another event", "booked under another journal number"]


def at(minutes: float) -> UUID:
    ms = int((utcnow() + timedelta(minutes=minutes)).timestamp() * 1000)
    return _layout(ms, uuid4().int & (1 << 74) - 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"event_id": partial(at, 6)}, "ahead of us"),
        ({"event_id": partial(at, -36 * 24 * 60)}, "old"),
        ({"kind": "accel"}, "does not come from a gateway"),
        ({"provenance": "correction"}, "does not come from a gateway"),
        ({"ended_at": LONG_AGO}, "ended before"),
        ({"counts": {"sun": 1}, "quoted_pico": 0}, "unknown meter"),
        ({"counts": {OUT: -1}, "quoted_pico": 0}, "impossible count"),
        ({"counts": {ACCEL_SECOND: 1}, "quoted_pico": 0}, "accelerator time"),
        ({"quoted_pico": COST + 1}, "the sheet says"),
        ({"sheet": bytes(32)}, "was not in force"),
        ({"sku": "none"}, "unrated"),
        ({"purse": "model=another=x"}, "does not pay for"),
        ({"purse": "pool=local/berths=x"}, "does not pay for"),
        ({"purse": "="}, "does not pay for"),
        ({"started_at": LONG_AGO - timedelta(days=1)}, "unrated"),
    ],
)
def test_fault_19_and_others_an_impossible_event_is_set_aside_and_counted(
    database: None, changes: dict[str, object], says: str
) -> None:
    berth = harbour()
    # An id's time counts from this moment, not from when the tests were collected.
    now = {name: value() if callable(value) else value for name, value in changes.items()}
    done = berth.ingest(berth.event(), berth.event(**now))
    assert (done.booked, done.quarantined) == (1, 1)
    assert says in reasons(berth)[0]
    assert berth.posted()["revenue"] == COST


def test_records_that_are_no_events_and_unknown_tenants_are_set_aside(database: None) -> None:
    berth = harbour()
    stranger = replace(berth.event(), tenant_id=uuid4())
    records = [berth.record(item) for item in ({"tenant_id": 1}, {}, stranger.to_json(), berth.event().to_json())]
    done = events_ingest(records)
    assert (done.booked, done.quarantined) == (1, 3)
    assert [reason.split(":")[0].split(" 0")[0] for reason in reasons(berth)][:2] == ["malformed", "malformed"]
    assert "there is no tenant" in reasons(berth)[2]


WRONG_FIELDS = [
    ("currency", "ZZZ"),
    ("currency", []),
    ("generation", 10**40),
    ("generation", 2**31),
    ("generation", "1"),
    ("generation", True),
    ("attempt", 2**15),
    ("attempt", -1),
    ("waste", 1.5),
    ("finish", "\ud800"),
    ("finish", "x" * 2000),
    ("engine_usage", {"text": "\ud800"}),
    ("engine_usage", {"text": "\x00"}),
    ("engine_usage", {"tokens": 10**30}),
    ("engine_usage", [1]),
    ("counts", [1]),
    ("counts", {"out": True}),
    ("counts", {"out": "20"}),
    ("quoted_pico", "-1"),
    ("quoted_pico", "9" * 5000),
    ("reserved_pico", "9" * 39),
    ("started_at", "2026-01-01T00:00:00"),
    ("ended_at", "0001-01-01T00:00:00+14:00"),
    ("event_id", "ffffffff-ffff-7fff-bfff-ffffffffffff"),
    ("purse", 7),
    ("sku", {}),
    ("sheet", "zz"),
    ("api_key_id", 1),
]


@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS)
def test_a_poisoned_field_is_set_aside_with_a_reason_and_stops_no_other_event(
    database: None, field: str, value: Any
) -> None:
    berth = harbour()
    poisoned = berth.record(berth.event().to_json() | {field: value})
    done = events_ingest([berth.record(berth.event()), poisoned, berth.record(berth.event())])
    assert (done.booked, done.quarantined) == (2, 1)
    (reason,) = reasons(berth)
    assert reason.startswith(("malformed: ", "refused by the database: "))
    assert json.loads(Quarantine.objects.get(gateway_id=berth.gateway_id).payload)[field] == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [field.name for field in fields(UsageEventFact)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    whole=json_values,
    changed=st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=3),
    lacking=st.sampled_from(FIELDS),
)
def test_whatever_json_holds_is_booked_or_set_aside_and_never_stops_ingest(
    database: None, whole: Any, changed: dict[str, Any], lacking: str
) -> None:
    berth = anybodys()
    good = berth.event().to_json()
    lacks = {name: value for name, value in berth.event().to_json().items() if name != lacking}
    records = [berth.record(payload) for payload in (whole, good | changed, lacks, berth.event().to_json())]
    done = events_ingest(records)
    assert done.booked >= 1
    assert done.booked + done.quarantined == len(records)
    set_aside = Quarantine.objects.filter(boot_id=berth.boot_id, journal_seq__gt=berth.seq - len(records))
    assert set_aside.exclude(reason="").count() == done.quarantined


@cache
def anybodys() -> Harbour:
    """One tenant for every example."""
    return harbour()


def test_what_the_database_refuses_stops_no_other_event(database: None) -> None:
    berth = harbour()
    poisoned = berth.event(engine_usage={"text": "\x00"})
    done = berth.ingest(berth.event(), poisoned, berth.event())
    assert (done.booked, done.quarantined) == (2, 1)
    assert berth.posted()["revenue"] == 2 * COST


def test_usage_without_a_hold_goes_late_available_money_first_then_overrun(database: None) -> None:
    berth = harbour(money=COST + 5)
    berth.ingest(berth.event(), berth.event())
    assert berth.posted() == {"overrun": 5 - COST, "revenue": 2 * COST}
    tx = LedgerTx.objects.get(tenant_id=berth.tenant_id, kind="usage_late")
    assert Outbox.objects.filter(dedupe_key=f"late:{tx.id}").exists()


def test_an_event_that_its_hold_does_not_cover_whole_goes_late_whole(database: None) -> None:
    berth = harbour(money=2 * COST)
    berth.hold(COST + 1)
    first, second = berth.event(), berth.event()
    berth.ingest(first, second)
    kinds = LedgerTx.objects.filter(tenant_id=berth.tenant_id, kind__startswith="usage").values_list("kind", flat=True)
    assert sorted(kinds) == ["usage", "usage_late"]
    assert berth.posted() == {"prepaid": 1, "revenue": 2 * COST, "overrun": -1}
    assert berth.held() == {"prepaid": 1}


def test_a_draw_passes_from_promotional_credit_to_own_money_within_one_event(database: None) -> None:
    from billing import services

    berth = harbour(money=COST)
    services.promo_grant(tenant_id=berth.tenant_id, currency="USD", amount_pico=7, idem_key="p", actor="t")
    berth.hold(COST + 7)
    berth.ingest(berth.event())
    assert berth.posted() == {"prepaid": 7, "revenue": COST}
    assert HoldMove.objects.filter(hold__account__tenant_id=berth.tenant_id, kind="draw").count() == 2


def test_another_generation_does_not_pay(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT, generation=1)
    berth.ingest(berth.event(generation=2))
    assert berth.held() == {"prepaid": UNIT}
    assert LedgerTx.objects.filter(tenant_id=berth.tenant_id, kind="usage_late").count() == 1


def test_free_usage_leaves_lines_and_a_leaf_and_no_transaction(database: None) -> None:
    berth = harbour(money=0, prices={IN_HIT: Rate(0), IN_MISS: Rate(0), OUT: Rate(0)})
    event = berth.event()
    assert berth.ingest(event).booked == 1
    assert berth.posted() == {}
    assert RatedLine.objects.filter(event_id=event.event_id, tx=None).count() == 2
    assert ReceiptLeaf.objects.filter(event_id=event.event_id).exists()


def test_fault_21_a_stream_across_a_price_change_pays_the_price_at_its_admission(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    change = utcnow() + timedelta(minutes=11)
    dearer = {meter: Rate(2 * rate.num_pico) for meter, rate in berth.sheet.meters.items()}
    new = Sheet(berth.sku, REGION, "USD", change, dearer)
    sheet_publish(sheet=new, actor="t")
    instant, minute = timedelta(microseconds=1), timedelta(minutes=1)
    across = {"started_at": change - instant, "ended_at": change + minute}
    after = {"started_at": change, "ended_at": change + minute}
    at_new = {"sheet": new.sha256(), "quoted_pico": 2 * COST}
    # Up to the last instant before it the old price and no other, from the change on the new one and no other.
    records = [berth.record(berth.event(**when, **price)) for when in (across, after) for price in ({}, at_new)]
    done = events_ingest(records, now=change + 2 * minute)
    assert (done.booked, done.quarantined) == (2, 2)
    booked = UsageEvent.objects.filter(tenant_id=berth.tenant_id).order_by("started_at")
    assert [(event.started_at, event.quoted_pico) for event in booked] == [
        (change - instant, COST),
        (change, 2 * COST),
    ]
    assert all("was not in force" in reason for reason in reasons(berth))
    assert berth.posted()["revenue"] == 3 * COST


@pytest.mark.parametrize("step", ["charges_post", "_leaves_write", "insert_rows", "entries_write"])
def test_fault_4_a_crash_anywhere_in_a_batch_leaves_nothing_and_a_second_pull_books_it(
    database: None, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    berth = harbour()
    berth.hold(UNIT)
    records = [berth.record(berth.event()) for _ in range(3)]
    moved: list[int] = []

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    owner = ingest if step == "charges_post" else posting.ledger if step == "entries_write" else posting
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, die)
        with pytest.raises(Killed):
            events_ingest(records, then=lambda: moved.append(1))
    assert berth.posted() == {"prepaid": 10 * UNIT}
    assert moved == []
    assert events_ingest(records, then=lambda: moved.append(1)).booked == 3
    assert moved == [1]


def test_the_look_for_repeats_reads_no_whole_table(database: None) -> None:
    params = {
        "events": [uuid4()],
        "subjects": [uuid4()],
        "gateways": ["gw"],
        "boots": [uuid4()],
        "numbers": [1],
    }
    with transaction.atomic(), connection.cursor() as cursor:
        # Small tables are read whole for speed; what has no index is read whole even so.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {ingest.BOOKED}", params)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "usage_event_journal" in plan
    assert "Seq Scan on usage_event" not in plan


def test_a_new_months_tree_starts_with_the_head_of_the_one_before(
    database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    berth = harbour()
    start, end = month_of(utcnow())
    with monkeypatch.context() as patch:
        patch.setattr(posting, "utcnow", lambda: start - timedelta(days=3))
        berth.ingest(berth.event())
    berth.ingest(berth.event())
    old, new = ReceiptTree.objects.filter(tenant_id=berth.tenant_id).order_by("period_start")
    carry = json.loads(bytes(ReceiptLeaf.objects.get(tree=new, idx=0).body))
    hashes = [bytes(leaf.hash) for leaf in ReceiptLeaf.objects.filter(tree=old).order_by("idx")]
    assert carry["size"] == str(old.size) == "2"
    assert carry["root"] == receipts.root_of(hashes).hex()
    assert new.size == 3
    assert end > start
