"""Usage taken back: at the original rate, to the accounts that paid, never twice, never more than was billed."""

import json
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import invoicing, services
from billing.core.corrections import credit_minor
from billing.corrections import usage_correct
from billing.models import Invoice, InvoiceLine, LedgerTx, RatedLine, ReceiptLeaf, UsageEvent
from billing.settling import credit_note_issue
from kernel.clock import utcnow
from kernel.pricing import ACCEL_SECOND, IN_MISS, OUT, Rate, Sheet
from kernel.problems import Problem
from tenants.models import AuditLog
from tests.billing.harbour import REGION, UNIT, Harbour, at_once, dedicated, harbour
from tests.billing.test_invoices import draft, last_month
from tests.billing.test_spans import clock, fact, place, rate

COST = 100 * 280_000 + 20 * 420_000


def correct(event_id: UUID, counts: dict[str, int]) -> UUID:
    return usage_correct(event_id=event_id, counts=counts, actor="ann", reason="the engine answered twice")


def issued(berth: Harbour) -> tuple[Invoice, UUID]:
    """Last month's invoice over one request of 100,000 and 20,000 tokens, and that event."""
    last_month(berth, counts={IN_MISS: 100_000, OUT: 20_000})
    invoice = invoicing.invoice_issue(invoice_id=draft(berth, months_ago=1).id, actor="t")
    return invoice, UsageEvent.objects.get(tenant_id=berth.tenant_id).event_id


def test_a_correction_credits_what_was_posted_touches_no_hold_and_leaves_a_leaf(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    event = berth.event()
    berth.ingest(event)
    correction = correct(event.event_id, {OUT: -5})
    back = 5 * 420_000
    assert berth.posted() == {"prepaid": 10 * UNIT - COST + back, "revenue": COST - back}
    assert berth.held() == {"prepaid": UNIT - COST}
    row = UsageEvent.objects.get(event_id=correction)
    assert (row.corrects_id, row.provenance, row.counts) == (event.event_id, "correction", {OUT: -5})
    assert (row.started_at, bytes(row.sheet_id)) == (event.started_at, event.sheet)
    body = json.loads(bytes(ReceiptLeaf.objects.get(event_id=correction).body))
    assert (body["kind"], body["corrects"]) == ("correction", str(event.event_id))
    assert body["lines"] == [["out", "-5", "420000", "1", str(-back)]]
    kept = AuditLog.objects.get(tenant_id=berth.tenant_id, action="usage.corrected")
    assert (kept.actor, kept.detail["reason"]) == ("ann", "the engine answered twice")


def test_corrections_never_take_back_more_than_is_left(database: None) -> None:
    berth = harbour()
    event = berth.event()
    berth.ingest(event)
    first = correct(event.event_id, {OUT: -15})
    with pytest.raises(Problem, match="5 out are left of this event"):
        correct(event.event_id, {OUT: -6})
    correct(event.event_id, {OUT: -5, IN_MISS: -100})
    assert berth.posted() == {"prepaid": 10 * UNIT}
    with pytest.raises(Problem, match="not_found"):
        correct(first, {OUT: -1})
    with pytest.raises(Problem, match="not_found"):
        correct(uuid4(), {OUT: -1})


@pytest.mark.parametrize("counts", [{}, {OUT: 0}, {OUT: 1}, {OUT: True}, {OUT: -1.0}])
def test_a_correction_without_a_negative_whole_number_is_refused(database: None, counts: dict[str, int]) -> None:
    berth = harbour()
    event = berth.event()
    berth.ingest(event)
    with pytest.raises(Problem, match="negative whole number"):
        correct(event.event_id, counts)
    with pytest.raises(Problem, match="0 in_hit are left"):
        correct(event.event_id, {"in_hit": -1})
    with pytest.raises(Problem, match="reason"):
        usage_correct(event_id=event.event_id, counts={OUT: -1}, actor="ann", reason=" ")
    assert berth.posted()["revenue"] == COST


def test_a_correction_has_the_price_of_its_event_whatever_came_after(database: None) -> None:
    berth = harbour()
    berth.hold(UNIT)
    event = berth.event(started_at=utcnow() - timedelta(minutes=5))
    berth.ingest(event)
    dear = Sheet(berth.sku, REGION, "USD", utcnow() - timedelta(minutes=1), {OUT: Rate(10**9)}, str(berth.tenant_id))
    services.sheet_publish(sheet=dear, actor="t")
    correct(event.event_id, {OUT: -20})
    assert berth.posted()["revenue"] == COST - 20 * 420_000


def test_a_refund_goes_to_own_money_before_promotional_credit_and_never_beyond_what_each_paid(database: None) -> None:
    berth = harbour(money=UNIT)
    services.promo_grant(tenant_id=berth.tenant_id, currency="USD", amount_pico=COST - 7, idem_key="p", actor="t")
    berth.hold(COST)
    event = berth.event()
    berth.ingest(event)
    assert berth.posted() == {"prepaid": UNIT - 7, "revenue": COST}
    correct(event.event_id, {OUT: -1})
    assert berth.posted() == {"prepaid": UNIT, "promo": 420_000 - 7, "revenue": COST - 420_000}
    correct(event.event_id, {OUT: -19, IN_MISS: -100})
    assert berth.posted() == {"prepaid": UNIT, "promo": COST - 7}


def test_overrun_is_forgiven_while_it_is_owed_and_paid_back_once_it_was_settled(database: None) -> None:
    berth = harbour(money=0)
    event = berth.event()
    berth.ingest(event)
    correct(event.event_id, {OUT: -20})
    assert berth.posted() == {"overrun": -28_000_000, "revenue": 28_000_000}
    services.topup(tenant_id=berth.tenant_id, currency="USD", amount_pico=28_000_000, idem_key="k", actor="t")
    correct(event.event_id, {IN_MISS: -100})
    assert berth.posted() == {"prepaid": 28_000_000}


def test_free_usage_is_corrected_without_a_transaction(database: None) -> None:
    berth = harbour(money=0, prices={OUT: Rate(0)})
    event = berth.event(counts={OUT: 7})
    berth.ingest(event)
    correction = correct(event.event_id, {OUT: -7})
    assert RatedLine.objects.get(event_id=correction).tx_id is None
    assert not LedgerTx.objects.filter(tenant_id=berth.tenant_id).exists()


def test_dedicated_time_goes_back_as_it_came_and_the_next_slice_is_rated_on_from_there(database: None) -> None:
    berth = harbour()
    sheet, deployment, pod = dedicated(berth, 10**9 + 1), uuid4(), uuid4()
    place(berth, sheet, deployment)
    fact(berth, sheet, "from", clock("12:00"), pod=pod, deployment=deployment)
    fact(berth, sheet, "alive", clock("13:00"), pod=pod, deployment=deployment)
    rate(clock("13:01"))
    first = UsageEvent.objects.get(subject_id=deployment)
    correct(first.event_id, {ACCEL_SECOND: -1})
    fact(berth, sheet, "to", clock("13:00:01"), pod=pod, deployment=deployment)
    rate(clock("13:05"))
    # 3,600 seconds, less one, and one more: exactly the price of an hour, and no pico beside it.
    assert berth.posted()["revenue"] == 10**9 + 1
    correct(first.event_id, {ACCEL_SECOND: -3599})
    last = UsageEvent.objects.exclude(event_id=first.event_id).get(subject_id=deployment, corrects=None)
    correct(last.event_id, {ACCEL_SECOND: -1})
    assert berth.posted() == {"prepaid": 10 * UNIT}


def test_a_correction_before_the_invoice_shrinks_the_draft(database: None) -> None:
    berth = harbour()
    event = berth.event()
    berth.ingest(event)
    draft(berth)
    correct(event.event_id, {OUT: -20})
    line = InvoiceLine.objects.get(invoice=draft(berth), meter=OUT)
    assert (line.quantity, line.amount_pico) == (0, 0)


def test_a_correction_of_an_issued_line_becomes_a_credit_note_that_cites_it(database: None) -> None:
    berth = harbour()
    invoice, event_id = issued(berth)
    # 0.028 for 100,000 tokens and 0.0084 for 20,000: four cents, of which three and one.
    shares = InvoiceLine.objects.filter(invoice=invoice).order_by("line_no").values_list("amount_minor", flat=True)
    assert (invoice.total_minor, list(shares)) == (4, [3, 1])
    correct(event_id, {IN_MISS: -50_000})
    invoicing.drafts_update()
    assert Invoice.objects.filter(tenant_id=berth.tenant_id).count() == 1
    note = credit_note_issue(invoice_id=invoice.id, actor="ann")
    assert (note.kind, note.status, note.corrects_id, note.total_minor) == ("credit_note", "issued", invoice.id, -2)
    assert str(note.number).startswith(f"C{invoice.period.lower:%Y}-")
    line = InvoiceLine.objects.get(invoice=note)
    assert (line.credits_line_no, line.quantity, line.amount_pico) == (1, -50_000, -50_000 * 280_000)
    correct(event_id, {IN_MISS: -50_000, OUT: -20_000})
    rest = credit_note_issue(invoice_id=invoice.id, actor="ann")
    assert rest.total_minor + note.total_minor == -invoice.total_minor
    # The roundings of all three took back what they gave: nothing of the usage is left in revenue.
    assert berth.posted() == {"prepaid": 10 * UNIT}


def test_a_credit_note_needs_an_issued_invoice_and_something_to_credit(database: None) -> None:
    berth = harbour()
    last_month(berth)
    open_draft = draft(berth, months_ago=1)
    with pytest.raises(Problem, match="is draft, not issued"):
        credit_note_issue(invoice_id=open_draft.id, actor="ann")
    invoicing.invoice_issue(invoice_id=open_draft.id, actor="t")
    with pytest.raises(Problem, match="nothing waits to be credited"):
        credit_note_issue(invoice_id=open_draft.id, actor="ann")
    with pytest.raises(Problem, match="there is no invoice"):
        credit_note_issue(invoice_id=uuid4(), actor="ann")


def test_fault_66_two_admins_refund_one_line_and_the_second_is_refused(database: None) -> None:
    berth = harbour()
    invoice, event_id = issued(berth)
    refund = {OUT: -20_000}
    assert at_once(*[lambda: correct(event_id, refund)] * 4) == ["conflict"] * 3 + ["done"]
    assert at_once(*[lambda: credit_note_issue(invoice_id=invoice.id, actor="ann")] * 4) == ["conflict"] * 3 + ["done"]
    assert Invoice.objects.filter(corrects=invoice).count() == 1
    assert UsageEvent.objects.filter(corrects=event_id).count() == 1


@given(st.integers(1, 10**14), st.lists(st.integers(0, 10**13), max_size=8), st.integers(-1, 1))
def test_credits_of_a_line_add_up_to_it_and_never_pass_it(total: int, parts: list[int], share: int) -> None:
    line_minor, credited, left = max(0, total // 10**10 + share), 0, total
    for part in [*parts, total]:
        left -= min(part, left)
        credited += credit_minor(line_minor=line_minor, credited_minor=credited, left_pico=left, currency="USD")
        assert 0 <= credited <= line_minor
    assert credited == line_minor
