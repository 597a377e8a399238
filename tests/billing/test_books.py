"""Every invariant fires on the violation that it is there for, and on nothing else that we do."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from billing import books, invoicing, spans
from kernel.clock import month_of, utcnow
from tests.billing.harbour import POOL, UNIT, Harbour, dedicated, harbour
from tests.billing.test_scoped import give
from tests.billing.test_spans import clock, fact, place, rate

OLD = "now() - interval '1 hour'"

# Each plants one wrong row into a world of good ones; {t} is the tenant, {o} another, {e} an event of {t}.
PLANTED = {
    "I1": "DELETE FROM ledger_entry WHERE seq = 1 AND tx_id = "
    "(SELECT id FROM ledger_tx WHERE tenant_id = '{t}' LIMIT 1)",
    "I2": "UPDATE ledger_account SET posted = posted + 1 WHERE tenant_id = '{t}' AND kind = 'revenue'",
    "I3": "UPDATE ledger_account SET held = held + 1 WHERE tenant_id = '{t}' AND kind = 'prepaid'",
    "I3b": "DELETE FROM hold_move WHERE kind = 'place' AND hold_id IN "
    "(SELECT h.id FROM hold h JOIN ledger_account a ON a.id = h.account_id WHERE a.tenant_id = '{t}')",
    "I4": "ALTER TABLE ledger_account DROP CONSTRAINT ledger_account_floor; "
    "UPDATE ledger_account SET min_available = 10 ^ 15 WHERE tenant_id = '{t}' AND kind = 'prepaid'",
    "I5": "UPDATE hold_move SET amount = amount + 1 WHERE kind = 'draw' AND tx_id IN "
    "(SELECT id FROM ledger_tx WHERE tenant_id = '{t}')",
    "I6": "UPDATE hold SET expires_at = {old} WHERE open > 0",
    "I7": "DELETE FROM rated_line WHERE event_id = '{e}' AND meter = 'out'; "
    "UPDATE usage_event SET received_at = {old} WHERE event_id = '{e}'",
    "I8": "INSERT INTO price_sheet (sha256, sku, region, currency, effective_from, body, tenant_id) SELECT "
    "sha256('other'), sku, region, currency, effective_from, body, '{t}' FROM price_sheet s WHERE s.sha256 = "
    "(SELECT sheet FROM usage_event WHERE event_id = '{e}')",
    "I8b": "UPDATE rated_line SET num_pico = num_pico + 1 WHERE event_id = '{e}'",
    "I8c": "UPDATE ledger_entry SET currency = 'EUR' WHERE tx_id = (SELECT tx_id FROM rated_line WHERE event_id = "
    "'{e}' LIMIT 1)",
    "I9": "UPDATE rated_line SET tx_id = (SELECT id FROM ledger_tx WHERE tenant_id = '{t}' AND kind = 'topup') "
    "WHERE event_id = '{e}' AND meter = 'out'",
    "I10": "UPDATE usage_event SET tenant_id = '{o}' WHERE event_id = '{e}'",
    "I11": "INSERT INTO usage_event SELECT (jsonb_populate_record(u, jsonb_build_object('event_id', gen_random_uuid(), "
    "'provenance', 'correction', 'corrects', u.event_id, 'journal_seq', null, 'counts', '{{\"out\": -21}}'::jsonb))).* "
    "FROM usage_event u WHERE event_id = '{e}'",
    "I12": "INSERT INTO usage_event SELECT (jsonb_populate_record(u, jsonb_build_object('event_id', gen_random_uuid(), "
    "'started_at', u.started_at + interval '1 second'))).* FROM usage_event u WHERE tenant_id = '{t}' "
    "AND kind = 'accel' LIMIT 1",
    "I13": "UPDATE usage_event SET journal_seq = 99 WHERE event_id = '{e}'",
    "I14": "INSERT INTO gateway_journal (gateway_id, boot_id, closed_seq, closed_at) SELECT gateway_id, boot_id, 77, "
    "{old} FROM usage_event WHERE event_id = '{e}'",
    "I15": "UPDATE invoice_line SET sku = 'forged' WHERE invoice_id = '{i}'",
    "I16": "UPDATE invoice SET total_minor = total_minor + 1 WHERE id = '{i}'",
    "I17": "UPDATE invoice_line SET quantity = quantity + 1 WHERE invoice_id = '{i}'",
    "I18": "DELETE FROM rated_line_invoice WHERE invoice_id = '{i}'",
    "I19": "INSERT INTO invoice (id, tenant_id, kind, number, currency, period, status, issued_at, total_minor, "
    "lines_sha256, corrects) SELECT '{n}', tenant_id, 'credit_note', 'CN', currency, period, 'issued', now(), -100, "
    "sha256('x'), id FROM invoice WHERE id = '{i}'; "
    "INSERT INTO invoice_line (invoice_id, line_no, sku, meter, quantity, amount_pico, amount_minor, credits_line_no) "
    "SELECT '{n}', 1, sku, meter, -quantity, -amount_pico, -100, line_no FROM invoice_line "
    "WHERE invoice_id = '{i}' LIMIT 1",
    "I20": "UPDATE ledger_tx SET reverses_id = (SELECT id FROM ledger_tx WHERE tenant_id = '{t}' AND kind = 'usage' "
    "LIMIT 1) WHERE tenant_id = '{t}' AND kind = 'topup'",
    "I21": "ALTER TABLE capacity_reservation DROP CONSTRAINT capacity_once; "
    "INSERT INTO capacity_reservation (id, tenant_id, accelerator_slot, period, status) SELECT gen_random_uuid(), "
    "'{t}', 1, tstzrange(now(), now() + interval '1 hour'), 'held' FROM generate_series(1, 2)",
    "I22": "UPDATE audit_log SET actor = 'nobody' WHERE tenant_id = '{t}'",
    "I23": "INSERT INTO engine_counter_delta (pod_uid, meter, period, tokens) VALUES (gen_random_uuid(), 'prompt', "
    "tstzrange(now() - interval '1 hour', now()), 2001)",
    "I23b": "UPDATE usage_event SET pod_uid = '{n}' WHERE event_id = '{e}'; "
    "INSERT INTO engine_counter_delta (pod_uid, meter, period, tokens) SELECT pod_uid, 'prompt', "
    "tstzrange(started_at, ended_at + interval '1 minute'), 99 FROM usage_event WHERE event_id = '{e}'",
    "I24": "INSERT INTO outbox (topic, dedupe_key, payload, created_at) VALUES ('t', '{n}', '{{}}', {old})",
    "I25": "UPDATE rated_line SET amount = amount + 1 WHERE meter = 'accel_second' AND event_id IN "
    "(SELECT event_id FROM usage_event WHERE tenant_id = '{t}')",
    "I26": "UPDATE usage_event SET quoted_pico = quoted_pico + 1, received_at = {old} WHERE event_id = '{e}'",
    "I27": "UPDATE ledger_tx SET kind = 'usage_late' WHERE tenant_id = '{t}' AND kind = 'usage'",
    "I28": "UPDATE receipt_tree SET size = size + 1 WHERE tenant_id = '{t}'",
    "I29": "UPDATE receipt_leaf SET event_id = NULL WHERE event_id = '{e}'",
    "I30": "UPDATE billable_span SET pool = 'local/moorings' WHERE tenant_id = '{t}'",
}


@pytest.fixture
def world(database: None) -> Harbour:
    """Requests, dedicated time and an issued invoice: something of everything that the books look at."""
    berth = harbour()
    give(berth, POOL, scope="pool", amount=10**9)
    berth.hold(UNIT)
    end = month_of(utcnow())[0]
    berth.ingest(berth.event(), berth.event(started_at=end, ended_at=end))
    sheet, deployment, pod = dedicated(berth, 3600 * 10**8), uuid4(), uuid4()
    place(berth, sheet, deployment)
    fact(berth, sheet, "from", clock("12:00"), pod=pod, deployment=deployment)
    fact(berth, sheet, "to", clock("12:10"), pod=pod, deployment=deployment)
    rate(clock("12:20"))
    assert spans.facts_take() == 0
    return berth


@pytest.fixture
def superuser(admin_dsn: str, migrated_database: str) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    """A connection past every trigger and foreign key; what it does is rolled back."""
    name = psycopg.conninfo.conninfo_to_dict(migrated_database)["dbname"]
    with psycopg.connect(admin_dsn, dbname=name) as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection
        connection.rollback()


def test_the_books_know_every_invariant_by_one_name() -> None:
    assert [invariant.name for invariant in books.INVARIANTS] == list(PLANTED)


@pytest.mark.parametrize("name", list(PLANTED))
def test_an_invariant_fires_on_its_violation(
    world: Harbour, superuser: "psycopg.Connection[tuple[object, ...]]", name: str
) -> None:
    month = month_of(clock("12:00"))
    draft = invoicing.invoice_draft(tenant_id=world.tenant_id, currency="USD", period=month)
    invoice = invoicing.invoice_issue(invoice_id=draft.id, actor="t")
    event = superuser.execute(
        "SELECT event_id FROM usage_event WHERE tenant_id = %s AND kind = 'tokens' ORDER BY 1 LIMIT 1",
        [world.tenant_id],
    ).fetchone()
    assert event is not None
    sql = PLANTED[name].format(t=world.tenant_id, o=harbour().tenant_id, e=event[0], i=invoice.id, n=uuid4(), old=OLD)
    query = next(invariant.sql for invariant in books.INVARIANTS if invariant.name == name)
    assert superuser.execute(query).fetchall() == []
    superuser.execute(sql)
    assert superuser.execute(query).fetchall() != []


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE credit SET scope = 'model', value = 'another' WHERE tenant_id = '{t}'",
        "UPDATE credit SET scope = 'accelerator', value = 'h200' WHERE tenant_id = '{t}'",
        "UPDATE usage_event SET purse = 'pool=local/berths=x' WHERE tenant_id = '{t}' AND kind = 'tokens'",
        "UPDATE usage_event SET purse = 'model=another=x' WHERE tenant_id = '{t}' AND kind = 'tokens'",
    ],
)
def test_credit_of_any_scope_that_paid_for_something_else_is_found(
    world: Harbour, superuser: "psycopg.Connection[tuple[object, ...]]", sql: str
) -> None:
    query = next(invariant.sql for invariant in books.INVARIANTS if invariant.name == "I30")
    assert superuser.execute(query).fetchall() == []
    superuser.execute(sql.format(t=world.tenant_id))
    assert superuser.execute(query).fetchall() != []


def test_a_violation_carries_its_sentence_and_rows_and_stops_invoicing(
    world: Harbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    red = books.Invariant("X1", "This is never so", True, "SELECT 42")
    monkeypatch.setattr(books, "INVARIANTS", (red,))
    assert books.check() == [books.Violation("X1", "This is never so", [(42,)], True)]
    draft = invoicing.invoice_draft(tenant_id=world.tenant_id, currency="USD", period=month_of(clock("12:00")))
    with pytest.raises(Exception, match=r"the books are red \(X1\).*: This is never so: 42"):
        invoicing.invoice_issue(invoice_id=draft.id, actor="t")
    monkeypatch.undo()
