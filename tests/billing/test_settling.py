"""An issued invoice is paid, or void once everything on it was credited; its CSV carries exact amounts."""

import csv
import io
from uuid import uuid4

import pytest

from billing import invoicing, services
from billing.corrections import usage_correct
from billing.models import Invoice, InvoiceLine, LedgerTx
from billing.selectors import invoice_csv
from billing.settling import credit_note_issue, invoice_pay, invoice_void
from kernel.money import parse
from kernel.pricing import ACCEL_SECOND, IN_MISS, OUT, Rate
from kernel.problems import Problem
from tests.billing.harbour import UNIT, Harbour, harbour
from tests.billing.test_corrections import issued
from tests.billing.test_invoices import draft, last_month
from tests.conftest import as_role

CENT = UNIT // 100


def postpaid(limit: int) -> Harbour:
    berth = harbour(money=0)
    services.accounts_open(tenant_id=berth.tenant_id, currency="USD", credit_limit_pico=limit)
    return berth


def test_an_invoice_that_the_balance_paid_moves_no_money(database: None) -> None:
    berth = harbour()
    invoice, _ = issued(berth)
    before = berth.posted()
    for _ in range(2):
        assert invoice_pay(invoice_id=invoice.id, received_pico=0, actor="ann").status == "paid"
    assert berth.posted() == before
    assert not LedgerTx.objects.filter(tenant_id=berth.tenant_id, kind="payment").exists()


def test_a_payment_settles_agreed_credit_once_and_the_rest_is_own_money(database: None) -> None:
    berth = postpaid(10 * UNIT)
    invoice, _ = issued(berth)
    # 0.0364 were used on credit and four cents are billed: 0.0036 more than is owed.
    assert berth.posted()["receivable"] == -36_400_000_000
    for _ in range(2):
        invoice_pay(invoice_id=invoice.id, received_pico=4 * CENT, actor="ann")
    assert berth.posted() == {"revenue": 4 * CENT, "prepaid": 4 * CENT - 36_400_000_000}
    assert LedgerTx.objects.filter(tenant_id=berth.tenant_id, kind="payment").count() == 1


@pytest.mark.parametrize("received", [-1, 4 * CENT + 1])
def test_a_payment_beyond_the_total_or_below_zero_is_refused(database: None, received: int) -> None:
    invoice, _ = issued(harbour())
    with pytest.raises(Problem, match=r"received is from 0 to 0\.04 USD"):
        invoice_pay(invoice_id=invoice.id, received_pico=received, actor="ann")
    assert Invoice.objects.get(id=invoice.id).status == "issued"


def test_only_an_issued_invoice_is_paid_or_void(database: None) -> None:
    berth = harbour()
    last_month(berth)
    open_draft = draft(berth, months_ago=1)
    for invoice_id, says in ((open_draft.id, "is draft, not issued"), (uuid4(), "there is no invoice")):
        with pytest.raises(Problem, match=says):
            invoice_pay(invoice_id=invoice_id, received_pico=0, actor="ann")
        with pytest.raises(Problem, match=says):
            invoice_void(invoice_id=invoice_id, actor="ann", reason="wrong address")


def test_an_invoice_becomes_void_once_credit_notes_took_all_of_it_back(database: None) -> None:
    berth = harbour()
    invoice, event_id = issued(berth)
    with pytest.raises(Problem, match="still bills 4 minor units"):
        invoice_void(invoice_id=invoice.id, actor="ann", reason="wrong tenant")
    usage_correct(event_id=event_id, counts={IN_MISS: -100_000, OUT: -20_000}, actor="ann", reason="wrong tenant")
    credit_note_issue(invoice_id=invoice.id, actor="ann")
    for _ in range(2):
        assert invoice_void(invoice_id=invoice.id, actor="ann", reason="wrong tenant").status == "void"
    with pytest.raises(Problem, match="is void, not issued"):
        invoice_pay(invoice_id=invoice.id, received_pico=0, actor="ann")
    assert berth.posted() == {"prepaid": 10 * UNIT}
    last_month(berth, counts={OUT: 30_000})
    again = invoicing.invoice_issue(invoice_id=draft(berth, months_ago=1).id, actor="t")
    assert (again.id != invoice.id, again.total_minor) == (True, 1)


def test_a_paid_invoice_can_still_be_credited(database: None) -> None:
    invoice, event_id = issued(harbour())
    invoice_pay(invoice_id=invoice.id, received_pico=0, actor="ann")
    usage_correct(event_id=event_id, counts={OUT: -20_000}, actor="ann", reason="r")
    assert credit_note_issue(invoice_id=invoice.id, actor="ann").corrects_id == invoice.id


def test_the_csv_of_an_invoice_and_of_its_credit_note_adds_up_to_their_totals(database: None) -> None:
    berth = harbour()
    invoice, event_id = issued(berth)
    usage_correct(event_id=event_id, counts={OUT: -1_000}, actor="ann", reason="r")
    note = credit_note_issue(invoice_id=invoice.id, actor="ann")
    with as_role("web", tenant_id=berth.tenant_id):
        texts = [invoice_csv(item) for item in (invoice, note)]
    for item, text in zip((invoice, note), texts, strict=True):
        rows = list(csv.DictReader(io.StringIO(text)))
        assert sum(parse(row["billed"]) for row in rows) == item.total_minor * CENT
        assert {row["invoice"] for row in rows} == {item.number}
        for row in rows:
            assert int(row["quantity"]) * parse(row["price"]) == parse(row["amount"])
    assert [row["credits_line"] for row in csv.DictReader(io.StringIO(texts[1]))] == ["2"]


def test_the_csv_names_the_price_of_an_hour_as_a_fraction(database: None) -> None:
    berth = harbour(prices={OUT: Rate(5)})
    berth.ingest(berth.event(counts={OUT: 1}))
    invoice = draft(berth)
    InvoiceLine.objects.filter(invoice=invoice).update(meter=ACCEL_SECOND, num_pico=7 * 10**11, den=3600)
    (row,) = csv.DictReader(io.StringIO(invoice_csv(invoice)))
    assert (row["price"], row["amount"], row["invoice"]) == ("0.7/3600", "0.000000000005", "")
