"""Drafts grow by rated lines; issuing numbers, rounds once and freezes."""

from datetime import timedelta

import pytest
from django.db import DatabaseError, transaction

from billing import invoicing
from billing.access import access_invoice
from billing.models import Invoice, InvoiceLine, LedgerAccount, RatedLineInvoice
from billing.selectors import invoice_list_for
from kernel.clock import month_of, utcnow
from kernel.ids import new_id
from kernel.problems import Problem
from tests.billing.harbour import UNIT, Harbour, at_once, harbour, one, run

COST = 100 * 280_000 + 20 * 420_000


def draft(berth: Harbour, *, months_ago: int = 0) -> Invoice:
    start, end = month_of(utcnow())
    for _ in range(months_ago):
        start, end = month_of(start - timedelta(days=1))
    return invoicing.invoice_draft(tenant_id=berth.tenant_id, currency="USD", period=(start, end))


def last_month(berth: Harbour, **changes: object) -> None:
    end = month_of(utcnow())[0] - timedelta(hours=1)
    berth.ingest(berth.event(started_at=end - timedelta(seconds=5), ended_at=end, **changes))


def test_a_draft_gathers_every_rated_line_once_however_often_it_is_brought_up_to_date(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    berth.ingest(berth.event(), berth.event())
    first = draft(berth)
    berth.ingest(berth.event())
    for _ in range(3):
        again = draft(berth)
    assert again.id == first.id
    lines = InvoiceLine.objects.filter(invoice=again).order_by("meter")
    assert [(line.meter, line.quantity, line.amount_pico, line.num_pico) for line in lines] == [
        ("in_miss", 300, 3 * 28_000_000, 280_000),
        ("out", 60, 3 * 8_400_000, 420_000),
    ]
    assert RatedLineInvoice.objects.filter(invoice_id=again.id).count() == 6
    assert [invoice.id for invoice in invoice_list_for(berth.tenant_id)] == [first.id]
    assert access_invoice(tenant_id=berth.tenant_id, invoice_id=first.id).id == first.id
    with pytest.raises(Problem, match="not_found"):
        access_invoice(tenant_id=harbour().tenant_id, invoice_id=first.id)


def test_the_sweep_drafts_every_tenant_and_month_that_has_lines_waiting(database: None) -> None:
    berth = harbour()
    last_month(berth)
    berth.ingest(berth.event())
    invoicing.drafts_update()
    assert Invoice.objects.filter(tenant_id=berth.tenant_id).count() == 2
    assert one(f"SELECT count(*) {invoicing.WAITING}") == 0


def test_an_issued_invoice_is_numbered_without_a_gap_rounded_once_and_frozen(database: None) -> None:
    numbers = []
    for _ in range(2):
        berth = harbour()
        last_month(berth, counts={"out": 30_000})
        invoice = invoicing.invoice_issue(invoice_id=draft(berth, months_ago=1).id, actor="t")
        assert invoicing.invoice_issue(invoice_id=invoice.id, actor="t").number == invoice.number
        numbers.append(int(str(invoice.number).split("-")[1]))
    assert numbers[1] == numbers[0] + 1
    # 30,000 tokens at 420,000 pico are 0.0126 USD: one cent is billed, 0.0026 is rounded off.
    assert invoice.total_minor == 1
    rounding = LedgerAccount.objects.get(tenant_id=berth.tenant_id, kind="revenue")
    assert rounding.posted == UNIT // 100
    for statement in (
        "UPDATE invoice_line SET quantity = 0 WHERE invoice_id = %s",
        "DELETE FROM invoice_line WHERE invoice_id = %s",
    ):
        with pytest.raises(DatabaseError, match="invoice is issued"), transaction.atomic():
            run(statement, invoice.id)
    for change in ("total_minor = 5", "status = 'draft', issued_at = NULL", "number = 'X'"):
        with pytest.raises(DatabaseError, match="only becomes paid or void"), transaction.atomic():
            run(f"UPDATE invoice SET {change} WHERE id = %s", invoice.id)
    run("UPDATE invoice SET status = 'paid' WHERE id = %s", invoice.id)


def test_use_that_arrives_after_the_invoice_is_billed_on_the_next(database: None) -> None:
    berth = harbour()
    last_month(berth)
    issued = invoicing.invoice_issue(invoice_id=draft(berth, months_ago=1).id, actor="t")
    last_month(berth)
    invoicing.drafts_update()
    late = Invoice.objects.get(tenant_id=berth.tenant_id, status="draft")
    assert late.period.lower == month_of(utcnow())[0]
    assert sum(line.amount_pico for line in InvoiceLine.objects.filter(invoice=late)) == COST
    assert sum(line.amount_pico for line in InvoiceLine.objects.filter(invoice=issued)) == COST


def test_a_running_period_an_empty_draft_and_an_unknown_one_are_not_issued(database: None) -> None:
    berth = harbour()
    berth.ingest(berth.event())
    for invoice_id, says in (
        (draft(berth).id, "the period ends"),
        (draft(berth, months_ago=1).id, "nothing is on this draft"),
        (new_id(), "there is no invoice"),
    ):
        with pytest.raises(Problem, match=says):
            invoicing.invoice_issue(invoice_id=invoice_id, actor="t")


def test_fault_24_drafted_and_issued_by_four_workers_a_month_has_one_invoice_and_no_number_is_lost(
    database: None,
) -> None:
    berth = harbour()
    last_month(berth, counts={"out": 30_000})
    assert at_once(*[lambda: draft(berth, months_ago=1)] * 4) == ["done"] * 4
    (invoice,) = Invoice.objects.filter(tenant_id=berth.tenant_id)
    assert InvoiceLine.objects.filter(invoice=invoice).count() == 1
    series, before = f"M{invoice.period.lower:%Y}-", last_number(invoice)
    assert at_once(*[lambda: invoicing.invoice_issue(invoice_id=invoice.id, actor="t")] * 4) == ["done"] * 4
    invoicing.drafts_update()
    (invoice,) = Invoice.objects.filter(tenant_id=berth.tenant_id)
    assert (invoice.status, invoice.number) == ("issued", f"{series}{before + 1:06d}")
    assert last_number(invoice) == before + 1
    # What was rounded off was posted once, and a second invoice of the month is refused by the database itself.
    assert berth.posted()["revenue"] == UNIT // 100
    with pytest.raises(DatabaseError, match="one_regular_invoice"), transaction.atomic():
        Invoice.objects.create(
            tenant_id=berth.tenant_id,
            currency="USD",
            kind="regular",
            period=invoice.period,
            status="draft",
            total_minor=0,
        )


def last_number(invoice: Invoice) -> int:
    """The last number given in an invoice's series."""
    series = f"M{invoice.period.lower:%Y}-"
    return int(one("SELECT COALESCE(max(last), 0) FROM invoice_counter WHERE series = %s", series))
