"""The end of a month: invoices and credit notes by a timer, rebates on them, and what stops all of it."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from billing import books, ledger, months, rebates, tasks
from billing.corrections import usage_correct
from billing.ingest import events_ingest
from billing.models import Invoice, InvoiceLine, LedgerTx, UsageEvent
from billing.services import promo_grant, sheet_publish
from kernel.ids import derived_id
from kernel.pricing import OUT, Rate, Sheet, Tier
from tenants.models import Outbox
from tests.billing.harbour import REGION, UNIT, Harbour, harbour

# Months that nothing else in the suite writes to, one each, so that only their own drafts fall due.
JUNE, JULY, AUGUST, MAY, APRIL = (datetime(2032, month, 10, tzinfo=UTC) for month in (6, 7, 8, 5, 4))

BROKEN = {"rebates_post": datetime(2032, 2, 10, tzinfo=UTC), "invoice_issue": datetime(2032, 3, 10, tzinfo=UTC)}


def use(berth: Harbour, at: datetime, out: int) -> UsageEvent:
    event = berth.event(
        event_id=derived_id(at, str(berth.tenant_id), str(berth.seq)), started_at=at, ended_at=at, counts={OUT: out}
    )
    assert events_ingest([berth.record(event)], now=at).booked == 1
    return UsageEvent.objects.get(event_id=event.event_id)


def due(at: datetime) -> datetime:
    """72 hours after the month of `at`."""
    return (at.replace(day=1) + timedelta(days=32)).replace(day=4)


def invoices(berth: Harbour, **filters: object) -> list[Invoice]:
    return list(Invoice.objects.filter(tenant_id=berth.tenant_id, **filters).order_by("issued_at", "number"))


def test_a_month_is_issued_72_hours_after_its_end_and_once(database: None) -> None:
    berth = harbour()
    use(berth, JUNE, 1000)
    months.month_close(now=due(JUNE) - timedelta(seconds=1))
    assert [invoice.status for invoice in invoices(berth)] == ["draft"]
    numbers = months.month_close(now=due(JUNE))
    months.month_close(now=due(JUNE))
    assert [invoice.number for invoice in invoices(berth)] == [n for n in numbers if n == invoices(berth)[0].number]
    assert invoices(berth)[0].status == "issued"


def test_what_is_corrected_after_that_is_credited_by_the_next_run(database: None) -> None:
    berth = harbour()
    event = use(berth, JULY, 1_000_000)
    months.month_close(now=due(JULY))
    usage_correct(event_id=event.event_id, counts={OUT: -500_000}, actor="ann", reason="garbled")
    months.month_close(now=due(JULY))
    months.month_close(now=due(JULY))
    note, invoice = sorted(invoices(berth), key=lambda item: item.total_minor)
    assert (invoice.total_minor, note.total_minor, note.corrects_id) == (42, -21, invoice.id)


@pytest.mark.parametrize("stops", [True, False])
def test_a_broken_invariant_that_pages_stops_every_invoice_and_says_which_rows(
    database: None, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    berth = harbour()
    use(berth, AUGUST, 1000)
    now = due(AUGUST) + timedelta(days=int(stops))
    broken = books.Invariant("X9", "Never so", stops, "SELECT 'row-17'")
    with monkeypatch.context() as patch:
        patch.setattr(books, "INVARIANTS", (broken,))
        months.month_close(now=now)
    assert [invoice.status for invoice in invoices(berth)] == ["draft" if stops else "issued"]
    said = Outbox.objects.filter(dedupe_key=f"invoicing-stopped:{now:%Y-%m-%d}").values_list("payload", flat=True)
    assert [row["sentence"] for row in said] == (["invoicing is stopped: X9: Never so: row-17"] if stops else [])


@pytest.mark.parametrize("name", ["rebates_post", "invoice_issue"])
def test_what_breaks_for_one_tenant_raises_an_alarm_and_stops_no_other_invoice(
    database: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    at = BROKEN[name]
    first, second = sorted((harbour(), harbour()), key=lambda berth: berth.tenant_id)
    use(first, at, 1000)
    use(second, at, 1000)
    months.month_close(now=due(at) - timedelta(seconds=1))
    [draft] = invoices(first)
    works = getattr(months, name)

    def breaks(**of: Any) -> object:
        if draft.id == of.get("invoice_id") or first.tenant_id == of.get("tenant_id"):
            raise ZeroDivisionError
        return works(**of)

    with monkeypatch.context() as patch:
        patch.setattr(months, name, breaks)
        months.month_close(now=due(at))
    statuses = [invoice.status for berth in (first, second) for invoice in invoices(berth)]
    assert statuses == ["draft", "issued"]
    said = Outbox.objects.filter(topic=ledger.ALARM, dedupe_key__contains=str(first.tenant_id))
    assert any("ZeroDivisionError" in row.payload["sentence"] for row in said)
    months.month_close(now=due(at))
    assert [invoice.status for invoice in invoices(first)] == ["issued"]


def test_the_hourly_check_raises_one_alarm_an_hour_for_each_broken_invariant(
    database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"X{uuid4().hex}"
    with monkeypatch.context() as patch:
        patch.setattr(books, "INVARIANTS", (books.Invariant(name, "Never so", False, "SELECT 'row-4'"),))
        for _ in range(3):
            tasks.check_books()
    rows = Outbox.objects.filter(dedupe_key__startswith=f"books:{name}:")
    assert {row.payload["sentence"] for row in rows} == {f"{name}: Never so: row-4"}
    assert rows.count() <= 2  # two where the hour changed in between


def test_a_rebate_on_what_given_credit_paid_is_no_own_money(database: None) -> None:
    berth = harbour()
    promo_grant(tenant_id=berth.tenant_id, currency="USD", amount_pico=3 * UNIT // 10, idem_key="g", actor="t")
    tiers = (Tier(0, 500),)
    berth.sheet = Sheet(
        f"{berth.sku}-half", REGION, "USD", APRIL - timedelta(days=30), {OUT: Rate(420_000)}, tiers=tiers
    )
    berth.sku = berth.sheet.sku
    sheet_publish(sheet=berth.sheet, actor="t")
    berth.hold(5 * UNIT)
    use(berth, APRIL, 1_000_000)
    assert berth.posted() == {"prepaid": 988 * UNIT // 100, "revenue": 42 * UNIT // 100}
    period = (APRIL.replace(day=1), APRIL.replace(month=5, day=1))
    # 0.30 of 0.42 were given credit: of 0.21, 0.12 go to own money and 0.09 to the credit.
    rebates.rebates_post(tenant_id=berth.tenant_id, currency="USD", period=period, now=due(APRIL))
    assert berth.posted() == {"prepaid": 10 * UNIT, "promo": 9 * UNIT // 100, "revenue": 21 * UNIT // 100}
    rebates.rebates_post(tenant_id=berth.tenant_id, currency="USD", period=period, now=due(APRIL))
    assert berth.posted()["promo"] == 9 * UNIT // 100


def test_tiers_rebate_a_month_as_a_line_of_its_invoice_and_follow_its_corrections(database: None) -> None:
    berth = harbour()
    # 10 % off beyond 0.10, 50 % beyond 0.30; a million tokens are 0.42.
    tiers = (Tier(UNIT // 10, 100), Tier(3 * UNIT // 10, 500))
    berth.sheet = Sheet(
        f"{berth.sku}-tiered", REGION, "USD", MAY - timedelta(days=30), {OUT: Rate(420_000)}, tiers=tiers
    )
    berth.sku = berth.sheet.sku
    sheet_publish(sheet=berth.sheet, actor="t")
    berth.hold(5 * UNIT)
    event = use(berth, MAY, 1_000_000)
    draft = months.drafts_update(now=due(MAY)) and invoices(berth)[0]
    assert draft
    period = (draft.period.lower, draft.period.upper)
    for _ in range(2):
        # 10 % of 0.20 and 50 % of 0.12: 0.08 go back to own money.
        rebates.rebates_post(tenant_id=berth.tenant_id, currency="USD", period=period, now=due(MAY))
        assert berth.posted() == {"prepaid": 10 * UNIT - 34 * UNIT // 100, "revenue": 34 * UNIT // 100}
    # Half of it is taken back: 0.21 are left, of which 0.011 are rebated; 0.069 were given too much.
    usage_correct(event_id=event.event_id, counts={OUT: -500_000}, actor="ann", reason="garbled")
    months.month_close(now=due(MAY))
    lines = InvoiceLine.objects.filter(invoice__tenant_id=berth.tenant_id).order_by("line_no")
    assert sorted((line.meter, line.amount_pico) for line in lines) == [
        ("out", 21 * UNIT // 100),
        ("rebate", -11 * UNIT // 1000),
    ]
    assert [invoice.total_minor for invoice in invoices(berth)] == [20]
    assert berth.posted()["revenue"] == 20 * UNIT // 100
    # What was given too much is no usage that came late, and pages nobody.
    kinds = LedgerTx.objects.filter(tenant_id=berth.tenant_id, source_type="usage").order_by("recorded_at")
    assert list(kinds.values_list("kind", flat=True)) == ["usage", "correction", "correction", "correction"]
