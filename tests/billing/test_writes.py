"""Two tables: writes that the books must take, and writes that the database must refuse whoever asks."""

from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import DatabaseError, transaction

from billing import invoicing, ledger, selectors, services
from billing.models import Invoice, InvoiceLine, LedgerAccount, LedgerTx, RatedLine, UsageEvent
from kernel.clock import utcnow
from kernel.pricing import IN_HIT, IN_MISS, OUT, Rate, Sheet
from tests.billing.harbour import LONG_AGO, REGION, UNIT, Harbour, dedicated, harbour, run
from tests.billing.test_corrections import correct
from tests.billing.test_invoices import draft, last_month
from tests.billing.test_spans import clock, fact, place, rate

COST = 100 * 280_000 + 20 * 420_000


def two_replicas_in_one_hour() -> None:
    berth, deployment = harbour(), uuid4()
    sheet = dedicated(berth, 3600)
    place(berth, sheet, deployment, 7200)
    for pod in (uuid4(), uuid4()):
        fact(berth, sheet, "from", clock("12:00"), pod=pod, deployment=deployment)
        fact(berth, sheet, "to", clock("12:30"), pod=pod, deployment=deployment)
    rate(clock("12:31"))
    assert berth.posted()["revenue"] == 2 * 1800


def an_operators_correction() -> None:
    berth = harbour()
    event = berth.event()
    berth.ingest(event)
    correct(event.event_id, {OUT: -20})
    assert berth.posted() == {"prepaid": 10 * UNIT - 28_000_000, "revenue": 28_000_000}


def zero_price() -> None:
    berth = harbour(money=0, prices={IN_HIT: Rate(0), IN_MISS: Rate(0), OUT: Rate(0)})
    event = berth.event()
    assert berth.ingest(event).booked == 1
    assert berth.posted() == {}
    assert RatedLine.objects.filter(event_id=event.event_id, amount=0, tx=None).count() == 2


def overrun_of_a_postpaid_tenant() -> None:
    berth = harbour(money=0)
    services.accounts_open(tenant_id=berth.tenant_id, currency="USD", credit_limit_pico=COST)
    assert berth.ingest(berth.event(), berth.event()).booked == 2
    assert berth.posted() == {"receivable": -COST, "overrun": -COST, "revenue": 2 * COST}


def a_late_event_after_the_close() -> None:
    berth = harbour()
    last_month(berth)
    closed = invoicing.invoice_issue(invoice_id=draft(berth, months_ago=1).id, actor="t")
    last_month(berth)
    invoicing.drafts_update()
    late = UsageEvent.objects.filter(tenant_id=berth.tenant_id).latest("received_at")
    assert closed.period.lower <= late.ended_at < closed.period.upper
    line = InvoiceLine.objects.get(invoice__tenant_id=berth.tenant_id, invoice__status="draft", meter=OUT)
    assert (line.quantity, Invoice.objects.get(id=closed.id).total_minor) == (20, closed.total_minor)


def the_end_of_a_contract_price() -> None:
    berth, now = harbour(), utcnow()
    owner = str(berth.tenant_id)
    own = Sheet(berth.sku, REGION, "USD", LONG_AGO, {IN_MISS: Rate(1), OUT: Rate(1)}, owner)
    ends = Sheet(berth.sku, REGION, "USD", now + timedelta(minutes=11), {}, owner)
    for sheet in (own, ends):
        services.sheet_publish(sheet=sheet, actor="t")
    key = {"sku": berth.sku, "region": REGION, "currency": "USD", "tenant_id": berth.tenant_id}
    assert selectors.sheet_for(**key, at=now) == own
    assert selectors.sheet_for(**key, at=now + timedelta(minutes=12)) == berth.sheet
    assert berth.ingest(berth.event(sheet=own.sha256(), quoted_pico=120)).booked == 1


@pytest.mark.parametrize(
    "write",
    [
        two_replicas_in_one_hour,
        an_operators_correction,
        zero_price,
        overrun_of_a_postpaid_tenant,
        a_late_event_after_the_close,
        the_end_of_a_contract_price,
    ],
)
def test_a_write_that_must_succeed_succeeds(database: None, write: Callable[[], None]) -> None:
    write()


def second_original(berth: Harbour) -> None:
    event = berth.event()
    berth.ingest(event)
    run(
        "INSERT INTO usage_event (event_id, source, tenant_id, subject_id, kind, sku, region, started_at, ended_at, "
        "counts, sheet, quoted_pico, provenance, finish, payload_sha256, gateway_id, boot_id, journal_seq) "
        "SELECT gen_random_uuid(), source, tenant_id, subject_id, kind, sku, region, started_at, ended_at, counts, "
        "sheet, quoted_pico, provenance, finish, payload_sha256, gateway_id, boot_id, journal_seq + 1 "
        "FROM usage_event WHERE event_id = %s",
        event.event_id,
    )


def move_on_a_sealed_hold(berth: Harbour) -> None:
    berth.hold(10)
    run("UPDATE hold SET sealed_at = now() WHERE account_id = %s", prepaid(berth).id)
    run(
        "INSERT INTO hold_move (hold_id, seq, kind, amount, transfer) SELECT id, 2, 'place', 1, 2 FROM hold "
        "WHERE account_id = %s",
        prepaid(berth).id,
    )


def unknown_meter(berth: Harbour) -> None:
    services_event(berth, counts='{"sun": 1}')


def negative_count(berth: Harbour) -> None:
    services_event(berth, counts='{"out": -1}')


def another_tenants_sheet(berth: Harbour) -> None:
    other = harbour()
    own = Sheet(berth.sku, REGION, "USD", LONG_AGO, {OUT: Rate(1)}, str(other.tenant_id))
    services_event(berth, counts='{"out": 1}', sheet=services.sheet_publish(sheet=own, actor="t"))


def edited_leaf(berth: Harbour) -> None:
    berth.ingest(berth.event())
    run("UPDATE receipt_leaf SET body = 'x' WHERE event_id IS NOT NULL")


def edited_event(berth: Harbour) -> None:
    berth.ingest(berth.event())
    run("UPDATE usage_event SET quoted_pico = 0 WHERE tenant_id = %s", berth.tenant_id)


def late_entry(berth: Harbour) -> None:
    tx = LedgerTx.objects.get(tenant_id=berth.tenant_id, kind="topup")
    ledger.entries_write(tx_id=tx.id, currency="USD", amounts={prepaid(berth).id: 5})


def unbalanced(berth: Harbour) -> None:
    tx_id = ledger.tx_open(
        tenant_id=berth.tenant_id,
        kind="adjustment",
        idem_key=str(uuid4()),
        source_type="t",
        source_id="t",
        effective_at=utcnow(),
    )
    ledger.entries_write(tx_id=tx_id, currency="USD", amounts={prepaid(berth).id: 5})


def sudden_price(berth: Harbour) -> None:
    run(
        "INSERT INTO price_sheet (sha256, sku, region, currency, effective_from, body) "
        "VALUES (sha256('x'), %s, %s, 'USD', now() + interval '9 minutes', '{}')",
        berth.sku,
        REGION,
    )


def posted_by_hand(berth: Harbour) -> None:
    run("UPDATE ledger_account SET posted = posted + 1 WHERE tenant_id = %s", berth.tenant_id)


def open_by_hand(berth: Harbour) -> None:
    berth.hold(10)
    run("UPDATE hold SET open = 0 WHERE account_id = %s", prepaid(berth).id)


def too_much(berth: Harbour) -> None:
    berth.hold(10)
    run(
        "INSERT INTO hold_move (hold_id, seq, kind, amount, transfer) SELECT id, 2, 'return', 11, 2 FROM hold "
        "WHERE account_id = %s",
        prepaid(berth).id,
    )


def overdraft(berth: Harbour) -> None:
    tx_id = ledger.tx_open(
        tenant_id=berth.tenant_id,
        kind="adjustment",
        idem_key=str(uuid4()),
        source_type="t",
        source_id="t",
        effective_at=utcnow(),
    )
    cash = ledger.house_account(currency="USD", kind="cash")
    ledger.entries_write(tx_id=tx_id, currency="USD", amounts={prepaid(berth).id: -11 * UNIT, cash.id: 11 * UNIT})


def prepaid(berth: Harbour) -> LedgerAccount:
    return LedgerAccount.objects.get(tenant_id=berth.tenant_id, kind="prepaid")


def services_event(berth: Harbour, *, counts: str, sheet: bytes | None = None) -> None:
    run(
        "INSERT INTO usage_event (event_id, source, tenant_id, subject_id, kind, sku, region, started_at, ended_at, "
        "counts, sheet, quoted_pico, provenance, finish, payload_sha256, gateway_id, boot_id, journal_seq) VALUES "
        "(gen_random_uuid(), 't', %s, gen_random_uuid(), 'tokens', %s, %s, now(), now(), %s, %s, 0, 'engine_final', "
        "'stop', sha256('x'), 't', gen_random_uuid(), 1)",
        berth.tenant_id,
        berth.sku,
        REGION,
        counts,
        sheet or berth.sheet.sha256(),
    )


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (second_original, "one_original_per_attempt"),
        (move_on_a_sealed_hold, "hold is sealed"),
        (unknown_meter, "unknown, negative or misplaced"),
        (negative_count, "unknown, negative or misplaced"),
        (another_tenants_sheet, "no such price sheet"),
        (edited_leaf, "permission denied"),
        (edited_event, "permission denied"),
        (late_entry, "only in the creating transaction"),
        (unbalanced, "does not balance"),
        (sudden_price, "ten minutes ahead"),
        (posted_by_hand, "permission denied"),
        (open_by_hand, "permission denied"),
        (too_much, "hold_open"),
        (overdraft, "ledger_account_floor"),
    ],
)
def test_a_write_that_must_fail_fails(database: None, write: Callable[[Harbour], None], says: str) -> None:
    berth = harbour()
    with pytest.raises(DatabaseError, match=says), transaction.atomic():
        write(berth)
