"""The books: every invariant as one query that must return no row. Read by the auditor, on the primary."""

from dataclasses import dataclass
from typing import Any

from django.db import connection

MAX_ROWS = 100
SHOWN_ROWS = 5
# Every journal record that arrived, booked or set aside.
ARRIVED = """
  SELECT gateway_id, boot_id, journal_seq FROM usage_event WHERE journal_seq IS NOT NULL
  UNION SELECT gateway_id, boot_id, journal_seq FROM quarantine WHERE journal_seq IS NOT NULL
"""
# Engines' counters by pod and six hours: tokens are booked as a stream ends and counted as it runs. A window
# with a restart lost what was counted after the last scrape, so its six hours prove nothing.
COUNTED = """
  SELECT pod_uid, meter, min(lower(period)) AS since, max(upper(period)) AS until, sum(tokens) AS tokens
  FROM engine_counter_delta GROUP BY pod_uid, meter, date_bin('6 hours', lower(period), 'epoch')
  HAVING sum(resets) = 0
"""
BILLED_METERS = """
  ((c.meter = 'prompt' AND k IN ('in_hit', 'in_miss')) OR (c.meter = 'generation' AND k IN ('out', 'reasoning')))
"""


@dataclass(frozen=True, slots=True)
class Invariant:
    """`sql` returns the offending rows; `pages` stops invoicing at once, the others page after their grace."""

    name: str
    sentence: str
    pages: bool
    sql: str


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold: what it says and the first rows that break it."""

    name: str
    sentence: str
    rows: list[tuple[Any, ...]]
    pages: bool

    def __str__(self) -> str:
        shown = ", ".join("/".join(map(str, row)) for row in self.rows[:SHOWN_ROWS])
        return f"{self.sentence}: {shown}"


def check() -> list[Violation]:
    """Run every invariant; the empty list means that the books are right."""
    found = []
    with connection.cursor() as cursor:
        for invariant in INVARIANTS:
            cursor.execute(invariant.sql)
            rows = cursor.fetchmany(MAX_ROWS)
            if rows:
                found.append(Violation(invariant.name, invariant.sentence, rows, invariant.pages))
    return found


INVARIANTS = (
    Invariant(
        "I1",
        "Every transaction balances per currency",
        True,
        """
        SELECT t.id FROM ledger_tx t LEFT JOIN ledger_entry e ON e.tx_id = t.id GROUP BY t.id, e.currency HAVING
        count(e.*) < 2 OR sum(e.amount) <> 0
        """,
    ),
    Invariant(
        "I2",
        "Cached balance equals sum of entries",
        True,
        """
        SELECT a.id FROM ledger_account a LEFT JOIN ledger_entry e ON e.account_id = a.id GROUP BY a.id HAVING
        a.posted <> COALESCE(sum(e.amount), 0)
        """,
    ),
    Invariant(
        "I3",
        "An account's held equals its holds' open",
        True,
        """
        SELECT a.id FROM ledger_account a LEFT JOIN hold h ON h.account_id = a.id GROUP BY a.id HAVING a.held <>
        COALESCE(sum(h.open), 0)
        """,
    ),
    Invariant(
        "I3b",
        "A hold's open equals its moves, no move missing",
        True,
        """
        SELECT h.id FROM hold h LEFT JOIN hold_move m ON m.hold_id = h.id GROUP BY h.id HAVING h.open <>
        COALESCE(sum(CASE m.kind WHEN 'place' THEN m.amount ELSE -m.amount END), 0) OR count(m.seq) <>
        COALESCE(max(m.seq), 0)
        """,
    ),
    Invariant(
        "I4",
        "No overdraft beyond the agreed floor",
        True,
        """
        SELECT id FROM ledger_account WHERE min_available IS NOT NULL AND posted-held < min_available
        """,
    ),
    Invariant(
        "I5",
        "What was drawn in a transaction is what left that account in it",
        True,
        """
        SELECT t.id, h.account_id FROM ledger_tx t JOIN hold_move m ON m.tx_id = t.id JOIN hold h ON h.id =
        m.hold_id GROUP BY t.id, h.account_id HAVING sum(m.amount) IS DISTINCT FROM (SELECT -sum(e.amount) FROM
        ledger_entry e WHERE e.tx_id = t.id AND e.account_id = h.account_id)
        """,
    ),
    Invariant(
        "I6",
        "No open money on an expired hold",
        False,
        """
        SELECT id FROM hold WHERE open > 0 AND expires_at < now()-interval '10 minutes'
        """,
    ),
    Invariant(
        "I7",
        "Every billable quantity has exactly its rated line, and no line exists without a quantity",
        False,
        """
        SELECT COALESCE(q.event_id, l.event_id) FROM (SELECT u.event_id, c.meter, c.q::bigint q FROM usage_event u
        CROSS JOIN LATERAL jsonb_each_text(u.counts) c(meter, q) WHERE c.q::bigint <> 0 AND u.received_at <
        now()-interval '5 minutes') q FULL JOIN (SELECT r.* FROM rated_line r JOIN usage_event u USING(event_id)
        WHERE u.received_at < now()-interval '5 minutes') l ON l.event_id = q.event_id AND l.meter = q.meter WHERE
        q.event_id IS NULL OR l.event_id IS NULL OR l.quantity <> q.q
        """,
    ),
    Invariant(
        "I8",
        "Each event priced by the sheet in force at its start, the tenant's first",
        True,
        """
        SELECT u.event_id FROM usage_event u LEFT JOIN usage_event o ON o.event_id = u.corrects JOIN price_sheet s
        ON s.sha256 = u.sheet WHERE s.sku <> u.sku OR s.region <> u.region OR u.sheet IS DISTINCT FROM
        sheet_at(s.sku, s.region, s.currency, u.tenant_id, COALESCE(o.started_at, u.started_at))
        """,
    ),
    Invariant(
        "I8b",
        "A line is quantity times price, exactly",
        True,
        """
        SELECT l.event_id, l.meter FROM rated_line l JOIN meter m ON m.name = l.meter WHERE NOT m.cumulative AND
        l.amount*l.den <> l.quantity*l.num_pico
        """,
    ),
    Invariant(
        "I8c",
        "Sheet and posting share one currency",
        True,
        """
        SELECT l.event_id FROM rated_line l JOIN usage_event u USING(event_id) JOIN price_sheet s ON s.sha256 =
        u.sheet JOIN ledger_entry e ON e.tx_id = l.tx_id WHERE e.currency <> s.currency
        """,
    ),
    Invariant(
        "I9",
        "Each usage posting carries exactly its rated lines into revenue",
        True,
        """
        SELECT t.id FROM ledger_tx t JOIN ledger_entry e ON e.tx_id = t.id JOIN ledger_account a ON a.id =
        e.account_id AND a.kind = 'revenue' WHERE t.kind IN ('usage','usage_late','correction') GROUP BY t.id HAVING
        sum(e.amount) <> (SELECT COALESCE(sum(l.amount), 0) FROM rated_line l WHERE l.tx_id = t.id)
        """,
    ),
    Invariant(
        "I10",
        "Usage posted only to its own tenant",
        True,
        """
        SELECT l.event_id FROM rated_line l JOIN usage_event u USING(event_id) JOIN ledger_entry e ON e.tx_id =
        l.tx_id JOIN ledger_account a ON a.id = e.account_id WHERE a.tenant_id IS NOT NULL AND a.tenant_id <>
        u.tenant_id
        """,
    ),
    Invariant(
        "I11",
        "A correction belongs to the same tenant, subject and SKU, and never drives a meter below zero",
        True,
        """
        SELECT c.corrects FROM usage_event c JOIN usage_event o ON o.event_id = c.corrects WHERE c.tenant_id <>
        o.tenant_id OR c.subject_id <> o.subject_id OR c.sku <> o.sku UNION SELECT e FROM (SELECT
        COALESCE(u.corrects, u.event_id) e, m.meter, sum(m.q::bigint) q FROM usage_event u CROSS JOIN LATERAL
        jsonb_each_text(u.counts) m(meter, q) WHERE u.kind <> 'rebate' GROUP BY 1, 2) z WHERE q < 0
        """,
    ),
    Invariant(
        "I12",
        "Dedicated windows of one pod never overlap (no second billed twice)",
        True,
        """
        SELECT a.event_id FROM usage_event a JOIN usage_event b ON b.pod_uid = a.pod_uid AND b.kind = 'accel' AND
        b.event_id > a.event_id AND tstzrange(a.started_at, a.ended_at) && tstzrange(b.started_at, b.ended_at) WHERE
        a.kind = 'accel' AND a.provenance <> 'correction' AND b.provenance <> 'correction'
        """,
    ),
    Invariant(
        "I13",
        "Journal has no gap",
        False,
        f"""
        SELECT gateway_id, boot_id FROM ({ARRIVED}) a GROUP BY 1, 2 HAVING max(journal_seq) <> count(*)
        """,  # noqa: S608  only our own text is spliced in
    ),
    Invariant(
        "I14",
        "A closed boot delivered everything it wrote",
        False,
        f"""
        SELECT j.gateway_id, j.boot_id FROM gateway_journal j WHERE j.closed_seq <> (SELECT count(*) FROM
        ({ARRIVED}) a WHERE a.gateway_id = j.gateway_id AND a.boot_id = j.boot_id) AND j.closed_at < now() -
        interval '15 minutes'
        """,  # noqa: S608  only our own text is spliced in
    ),
    Invariant(
        "I15",
        "Issued invoice lines unchanged since issue",
        True,
        """
        SELECT i.id FROM invoice i WHERE i.status <> 'draft' AND i.lines_sha256 IS DISTINCT FROM (SELECT
        sha256(convert_to(string_agg(concat_ws('|', line_no, sku, meter, quantity, amount_pico, amount_minor,
        credits_line_no), E'\\n' ORDER BY line_no),'UTF8')) FROM invoice_line l WHERE l.invoice_id = i.id)
        """,
    ),
    Invariant(
        "I16",
        "Header total equals lines",
        True,
        """
        SELECT i.id FROM invoice i LEFT JOIN invoice_line l ON l.invoice_id = i.id WHERE i.status <> 'draft' GROUP
        BY i.id HAVING i.total_minor <> COALESCE(sum(l.amount_minor), 0)
        """,
    ),
    Invariant(
        "I17",
        "Each invoice line equals the rated lines assigned to it",
        True,
        """
        SELECT l.invoice_id, l.line_no FROM invoice_line l JOIN invoice i ON i.id = l.invoice_id LEFT JOIN
        rated_line_invoice x USING(invoice_id, line_no) LEFT JOIN rated_line r ON r.event_id = x.event_id AND
        r.meter = x.meter WHERE i.kind = 'regular' AND i.status <> 'void' GROUP BY l.invoice_id, l.line_no HAVING
        l.amount_pico <> COALESCE(sum(r.amount), 0) OR l.quantity <> COALESCE(sum(r.quantity), 0)
        """,
    ),
    Invariant(
        "I18",
        "Nothing rated in a closed period is left uninvoiced",
        False,
        """
        SELECT r.event_id FROM rated_line r JOIN usage_event u USING(event_id) JOIN invoice i ON i.tenant_id =
        u.tenant_id AND i.kind = 'regular' AND i.status IN ('issued','paid') AND i.period @> u.started_at LEFT JOIN
        rated_line_invoice x ON x.event_id = r.event_id AND x.meter = r.meter WHERE x.event_id IS NULL AND
        u.received_at < i.issued_at
        """,
    ),
    Invariant(
        "I19",
        "Credit notes never exceed the line they credit",
        False,
        """
        SELECT o.invoice_id, o.line_no FROM invoice_line o JOIN invoice cn ON cn.corrects = o.invoice_id AND
        cn.status IN ('issued','paid') JOIN invoice_line c ON c.invoice_id = cn.id AND c.credits_line_no = o.line_no
        GROUP BY o.invoice_id, o.line_no HAVING -sum(c.amount_minor) > o.amount_minor
        """,
    ),
    Invariant(
        "I20",
        "A reversal (of a top-up, an adjustment) mirrors its original exactly",
        True,
        """
        SELECT r.id FROM ledger_tx r WHERE r.reverses_id IS NOT NULL AND r.kind <> 'usage' AND EXISTS (SELECT 1 FROM
        (SELECT account_id, amount FROM ledger_entry WHERE tx_id = r.reverses_id UNION ALL SELECT account_id, amount
        FROM ledger_entry WHERE tx_id = r.id) z GROUP BY account_id HAVING sum(amount) <> 0)
        """,
    ),
    Invariant(
        "I21",
        "No second of capacity sold twice (also an EXCLUDE)",
        True,
        """
        SELECT a.id FROM capacity_reservation a JOIN capacity_reservation b ON a.accelerator_slot =
        b.accelerator_slot AND a.id < b.id AND a.period && b.period WHERE a.status IN('held','active') AND b.status
        IN('held','active')
        """,
    ),
    Invariant(
        "I22",
        "Audit chain unbroken",
        True,
        """
        SELECT seq FROM (SELECT seq, prev_hash, hash, lag(hash) OVER w AS p, lag(seq) OVER w AS ps,
        sha256(COALESCE(prev_hash,''::bytea)||convert_to(concat_ws('|', seq, extract(epoch FROM at), actor,
        tenant_id, action, detail::text),'UTF8')) AS h FROM audit_log WINDOW w AS (ORDER BY seq)) z WHERE hash <> h
        OR prev_hash IS DISTINCT FROM p OR (ps IS NOT NULL AND seq <> ps+1)
        """,
    ),
    Invariant(
        "I23",
        "Engine counters agree with billed tokens per pod over six hours, within half a percent or 2,000 tokens",
        False,
        f"""
        SELECT pod_uid, meter, since, tokens, billed FROM ({COUNTED}) c CROSS JOIN LATERAL (
          SELECT COALESCE(sum(v::bigint), 0) billed FROM usage_event u CROSS JOIN jsonb_each_text(u.counts) q(k, v)
          WHERE u.pod_uid = c.pod_uid AND u.ended_at >= c.since AND u.ended_at < c.until
            AND u.provenance <> 'correction' AND {BILLED_METERS}) u
        WHERE abs(tokens - billed) > GREATEST(2000, 0.005 * tokens)
        """,  # noqa: S608  only our own text is spliced in
    ),
    Invariant(
        "I23b",
        "Nothing is billed that no engine made: of requests wholly inside six hours of a pod's counters",
        True,
        f"""
        SELECT pod_uid, meter, since, tokens, billed FROM ({COUNTED}) c CROSS JOIN LATERAL (
          SELECT COALESCE(sum(v::bigint), 0) billed FROM usage_event u CROSS JOIN jsonb_each_text(u.counts) q(k, v)
          WHERE u.pod_uid = c.pod_uid AND u.started_at >= c.since AND u.ended_at < c.until - interval '5 seconds'
            AND {BILLED_METERS}) u
        WHERE billed > tokens
        """,  # noqa: S608  only our own text is spliced in
    ),
    Invariant(
        "I24",
        "Outbox drains",
        False,
        """
        SELECT id FROM outbox WHERE published_at IS NULL AND created_at < now()-interval '15 minutes'
        """,
    ),
    Invariant(
        "I25",
        "Accelerator time rated cumulatively: total within half a pico",
        False,
        """
        SELECT u.subject_id FROM rated_line l JOIN usage_event u USING(event_id) JOIN meter m ON m.name = l.meter
        AND m.cumulative GROUP BY u.subject_id, l.meter, l.den, l.num_pico HAVING
        abs(sum(l.amount)*l.den-sum(l.quantity)*l.num_pico)*2 > l.den
        """,
    ),
    Invariant(
        "I26",
        "What was quoted is what was rated",
        False,
        """
        SELECT u.event_id FROM usage_event u LEFT JOIN rated_line l USING(event_id) WHERE u.received_at <
        now()-interval '5 minutes' GROUP BY u.event_id HAVING u.quoted_pico <> COALESCE(sum(l.amount), 0)
        """,
    ),
    Invariant(
        "I27",
        "Every late posting raised its alarm",
        False,
        """
        SELECT t.id FROM ledger_tx t WHERE t.kind = 'usage_late' AND NOT EXISTS(SELECT 1 FROM outbox o WHERE
        o.dedupe_key = 'late:'||t.id)
        """,
    ),
    Invariant(
        "I28",
        "A tree has all its leaves",
        False,
        """
        SELECT t.id FROM receipt_tree t LEFT JOIN receipt_leaf l ON l.tree_id = t.id GROUP BY t.id HAVING t.size <>
        count(l.idx) OR COALESCE(max(l.idx)+1, 0) <> t.size
        """,
    ),
    Invariant(
        "I29",
        "Every rated event has its leaf",
        False,
        """
        SELECT DISTINCT r.event_id FROM rated_line r LEFT JOIN receipt_leaf l USING(event_id) WHERE l.event_id IS
        NULL
        """,
    ),
    Invariant(
        "I30",
        "Scoped credit pays only for what it names",
        True,
        """
        SELECT h.id FROM hold h JOIN credit c ON c.account_id = h.account_id JOIN
          (SELECT deployment_id AS id, sku, pool FROM billable_span UNION SELECT endpoint_id, sku, pool
          FROM reserved_span) s ON h.subject = 'deployment:' || s.id
        WHERE CASE c.scope WHEN 'pool' THEN s.pool NOT IN (c.value, '')
          ELSE c.value <> ALL (string_to_array(s.sku, ':')) END
        UNION SELECT event_id FROM usage_event WHERE purse <> 'general'
          AND split_part(purse, '=', 2) <> ALL (string_to_array(sku, ':'))
        """,
    ),
)
