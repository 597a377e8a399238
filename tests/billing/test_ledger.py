"""Accounts, money in and out of them, and the writes that the database refuses or accepts."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.db import DatabaseError, transaction

from billing import selectors, services
from billing.models import LedgerTx
from kernel.clock import utcnow
from kernel.pricing import IN_MISS, Rate, Sheet
from kernel.problems import Problem
from tests.billing.harbour import LONG_AGO, REGION, UNIT, harbour, one, run
from tests.billing.test_invoices import draft
from tests.conftest import as_role


def code(raised: pytest.ExceptionInfo[Problem]) -> str:
    return raised.value.type.code


def test_a_top_up_credits_once_for_its_key(database: None) -> None:
    berth = harbour(money=0)
    ids = {
        services.topup(tenant_id=berth.tenant_id, currency="USD", amount_pico=3 * UNIT, idem_key="k", actor="t")
        for _ in range(3)
    }
    assert len(ids) == 1
    assert berth.posted() == {"prepaid": 3 * UNIT}
    with pytest.raises(Problem) as raised:
        services.topup(tenant_id=berth.tenant_id, currency="USD", amount_pico=UNIT, idem_key="k", actor="t")
    assert code(raised) == "idempotency_mismatch"


def test_a_top_up_of_nothing_or_in_an_unknown_currency_is_refused(database: None) -> None:
    berth = harbour(money=0)
    for amount, currency in ((0, "USD"), (-1, "USD"), (1, "ZZZ")):
        with pytest.raises(Problem):
            services.topup(tenant_id=berth.tenant_id, currency=currency, amount_pico=amount, idem_key="k", actor="t")
    assert berth.posted() == {}


def test_promotional_credit_is_spent_before_own_money(database: None) -> None:
    berth = harbour(money=UNIT)
    services.promo_grant(tenant_id=berth.tenant_id, currency="USD", amount_pico=10, idem_key="p", actor="t")
    berth.hold(1000)
    assert berth.held() == {"promo": 10, "prepaid": 990}


def test_a_reversal_mirrors_once_and_only_what_is_left(database: None) -> None:
    berth = harbour(money=5 * UNIT)
    tx = LedgerTx.objects.get(tenant_id=berth.tenant_id, kind="topup")
    berth.hold(1)
    with pytest.raises(Problem) as raised:
        services.topup_reverse(tx_id=tx.id, actor="t")
    assert code(raised) == "insufficient_balance"
    services.topup(tenant_id=berth.tenant_id, currency="USD", amount_pico=1, idem_key="more", actor="t")
    services.topup_reverse(tx_id=tx.id, actor="t")
    assert berth.posted() == {"prepaid": 1}


def test_fault_66_the_second_reversal_of_one_top_up_is_refused(database: None) -> None:
    berth = harbour(money=UNIT)
    tx = LedgerTx.objects.get(tenant_id=berth.tenant_id, kind="topup")
    services.topup_reverse(tx_id=tx.id, actor="ann")
    with pytest.raises(Problem) as raised:
        services.topup_reverse(tx_id=tx.id, actor="bob")
    assert code(raised) == "conflict"
    assert berth.posted() == {}
    with pytest.raises(Problem) as raised:
        services.topup_reverse(tx_id=uuid4(), actor="t")
    assert code(raised) == "not_found"


def test_a_top_up_settles_what_is_owed_first(database: None) -> None:
    berth = harbour(money=0)
    event = berth.event()
    berth.ingest(event)
    assert berth.posted() == {"overrun": -event.quoted_pico, "revenue": event.quoted_pico}
    services.topup(tenant_id=berth.tenant_id, currency="USD", amount_pico=UNIT, idem_key="k", actor="t")
    assert berth.posted() == {"prepaid": UNIT - event.quoted_pico, "revenue": event.quoted_pico}


def test_a_postpaid_tenant_spends_down_to_its_limit_and_no_further(database: None) -> None:
    berth = harbour(money=0)
    services.accounts_open(tenant_id=berth.tenant_id, currency="USD", credit_limit_pico=500)
    services.accounts_open(tenant_id=berth.tenant_id, currency="USD", credit_limit_pico=1000)
    assert selectors.balance_for(berth.tenant_id).available_pico == 1000
    berth.hold(1000)
    assert one("SELECT hold_place(%s::uuid, 'USD', 'gateway:general:local', 1, 2, 1, false)", berth.tenant_id) == 0


def test_the_balance_of_a_tenant_without_accounts_is_zero(database: None) -> None:
    balance = selectors.balance_for(harbour(money=0).tenant_id)
    assert (balance.posted_pico, balance.available_pico, balance.spent_month_pico) == (0, 0, 0)
    assert balance.accounts == ()


def test_a_price_change_needs_ten_minutes_and_the_tenants_own_price_goes_first(database: None) -> None:
    berth = harbour()
    now = utcnow()
    changed = Sheet(berth.sku, REGION, "USD", now + timedelta(minutes=9), {IN_MISS: Rate(1)})
    with pytest.raises(Problem):
        services.sheet_publish(sheet=changed, actor="t")
    own = Sheet(berth.sku, REGION, "USD", LONG_AGO, {IN_MISS: Rate(7)}, str(berth.tenant_id))
    name = services.sheet_publish(sheet=own, actor="t")
    assert services.sheet_publish(sheet=own, actor="t") == name
    ends = Sheet(berth.sku, REGION, "USD", now + timedelta(minutes=20), {}, str(berth.tenant_id))
    services.sheet_publish(sheet=ends, actor="t")

    def at(minutes: int, tenant_id: UUID | None = berth.tenant_id) -> Sheet | None:
        return selectors.sheet_for(
            sku=berth.sku, region=REGION, currency="USD", tenant_id=tenant_id, at=now + timedelta(minutes=minutes)
        )

    assert at(0) == own
    assert at(0, None) == berth.sheet
    assert at(21) == berth.sheet
    assert selectors.sheet_for(sku="none", region=REGION, currency="USD", tenant_id=None, at=now) is None
    projected = [sheet for sheet in selectors.sheets_for_projection() if sheet.sku == berth.sku]
    assert sorted(projected, key=lambda sheet: sheet.sha256()) == sorted(
        [berth.sheet, own, ends], key=lambda sheet: sheet.sha256()
    )


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("ledger_tx", "kind"),
        ("ledger_entry", "amount"),
        ("hold_move", "amount"),
        ("usage_event", "counts"),
        ("rated_line", "amount"),
        ("rated_line_invoice", "line_no"),
        ("price_sheet", "body"),
        ("receipt_leaf", "body"),
        ("quarantine", "reason"),
        ("audit_log", "detail"),
    ],
)
def test_not_even_the_owner_edits_what_is_append_only(database: None, table: str, column: str) -> None:
    berth = harbour()
    berth.hold(UNIT)
    berth.ingest(berth.event(), berth.event(quoted_pico=1))
    draft(berth)
    with as_role("owner"):
        for statement in (
            f"UPDATE {table} SET {column} = {column}",
            f"DELETE FROM {table}",
            f"TRUNCATE {table} CASCADE",
        ):
            with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
                run(statement)


def test_web_reads_its_own_money_and_writes_none(database: None) -> None:
    ours, theirs = harbour(), harbour()
    theirs.hold(UNIT)
    theirs.ingest(theirs.event())
    ours.ingest(ours.event())
    tables = "ledger_account ledger_tx ledger_entry hold hold_move usage_event rated_line receipt_tree receipt_leaf"
    for table in tables.split():
        with as_role("web"):
            assert one(f"SELECT count(*) FROM {table}") == 0, table
        denied = pytest.raises(DatabaseError, match="denied")
        with as_role("web", tenant_id=ours.tenant_id), denied, transaction.atomic():
            run(f"INSERT INTO {table} DEFAULT VALUES")
    with as_role("web", tenant_id=ours.tenant_id):
        assert one("SELECT count(*) FROM usage_event") == 1
        assert one("SELECT count(*) FROM rated_line") == 2
        assert one("SELECT count(DISTINCT tenant_id) FROM ledger_account") == 1
        assert one("SELECT count(*) FROM hold_move") == 0
        with pytest.raises(DatabaseError, match="not this tenant"), transaction.atomic():
            ours.hold(1)
