"""Counts that break no invariant and are hardly true: each raises an alarm, and bills what it says."""

from datetime import datetime, timedelta

from django.db import connection

from billing import ledger
from kernel.clock import utcnow

RECENT, BEFORE = timedelta(hours=1), timedelta(hours=25)
LEAST_TOKENS = 10_000  # of prompts, in either time, for a share to mean something
JUMP_PERCENT = 40
# Each pod's share of cached prompt tokens within the last hour against its SKU's on the day before it.
JUMPS = """
WITH said AS (
  SELECT sku, pod_uid, ended_at >= %(recent)s AS is_recent, (counts ->> 'in_hit')::bigint AS hit,
    (counts ->> 'in_hit')::bigint + (counts ->> 'in_miss')::bigint AS prompt
  FROM usage_event WHERE kind = 'tokens' AND provenance = 'engine_final' AND ended_at >= %(before)s
    AND ended_at < %(now)s AND pod_uid IS NOT NULL
), shares AS (
  SELECT sku, CASE WHEN is_recent THEN pod_uid END AS pod_uid, is_recent, 100 * sum(hit) / sum(prompt) AS percent
  FROM said GROUP BY 1, 2, 3 HAVING sum(prompt) >= %(least)s
)
SELECT now.pod_uid, now.sku, before.percent::int, now.percent::int FROM shares now JOIN shares before USING (sku)
WHERE now.is_recent AND NOT before.is_recent AND now.percent >= before.percent + %(jump)s ORDER BY 1
"""

# Text was delivered and not a single token counted.
UNCOUNTED = """
SELECT pod_uid, sku, count(*) FROM usage_event
WHERE kind = 'tokens' AND provenance = 'estimated' AND ended_at >= %s AND ended_at < %s GROUP BY 1, 2 ORDER BY 2, 1
"""


def hit_jumps_alarm(*, now: datetime | None = None) -> int:
    """Raise one alarm an hour for each pod whose share of cached prompt tokens jumped; how many jumped."""
    now = now or utcnow()
    times = {"recent": now - RECENT, "before": now - BEFORE, "now": now}
    with connection.cursor() as cursor:
        cursor.execute(JUMPS, {**times, "least": LEAST_TOKENS, "jump": JUMP_PERCENT})
        jumps = cursor.fetchall()
    for pod_uid, sku, before, percent in jumps:
        ledger.alarm(
            key=f"hits:{pod_uid}:{now:%Y-%m-%dT%H}",
            sentence=f"pod {pod_uid} says that {percent} % of the prompts of {sku} were cached, after {before} %: "
            "compare its counts with the golden usage of its image before it serves on",
        )
    return len(jumps)


def uncounted_alarm(*, now: datetime | None = None) -> int:
    """Raise one alarm an hour for each pod whose answers of the last hour were delivered uncounted; how many pods."""
    now = now or utcnow()
    with connection.cursor() as cursor:
        cursor.execute(UNCOUNTED, [now - RECENT, now])
        found = cursor.fetchall()
    for pod_uid, sku, answers in found:
        ledger.alarm(
            key=f"uncounted:{pod_uid}:{sku}:{now:%Y-%m-%dT%H}",
            sentence=f"{answers} answers of {sku} from pod {pod_uid} were delivered without a token counted",
        )
    return len(found)
