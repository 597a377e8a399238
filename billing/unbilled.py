"""What engines made and nobody pays for: per pod, window and meter, beside the requests that explain it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection

from billing.books import BILLED_METERS

# Windows that are written, and the ones that still grow. A request is named where its count is not the engine's
# last one, where it reaches beyond the window, or where another replica had failed before: on which pod that was,
# its event does not say.
SQL = f"""
WITH c AS (
  SELECT pod_uid, meter, lower(period) AS since, upper(period) AS until, tokens, resets FROM engine_counter_delta
  UNION ALL
  SELECT pod_uid, meter, since_at, until_at, tokens, resets FROM engine_counter WHERE until_at > since_at
)
SELECT c.pod_uid, c.meter, c.since, c.until, c.resets, c.tokens, b.billed, r.waste, r.requests FROM c
CROSS JOIN LATERAL (
  SELECT COALESCE(sum(v::bigint), 0)::bigint AS billed FROM usage_event u CROSS JOIN jsonb_each_text(u.counts) q(k, v)
  WHERE u.pod_uid = c.pod_uid AND u.ended_at >= c.since AND u.ended_at < c.until AND u.provenance <> 'correction'
    AND {BILLED_METERS}
) b
CROSS JOIN LATERAL (
  SELECT COALESCE(sum(u.waste) FILTER (WHERE c.meter = 'generation' AND u.pod_uid = c.pod_uid
      AND u.ended_at >= c.since AND u.ended_at < c.until), 0)::bigint AS waste,
    COALESCE(json_agg(json_build_object('request_id', u.subject_id, 'finish', u.finish, 'attempt', u.attempt,
      'started_at', u.started_at, 'ended_at', u.ended_at, 'out', u.counts -> 'out', 'waste', u.waste)
      ORDER BY u.started_at, u.subject_id), '[]') AS requests
  FROM usage_event u WHERE u.kind = 'tokens' AND u.provenance <> 'correction'
    AND (u.pod_uid = c.pod_uid OR u.attempt > 1) AND u.started_at < c.until AND u.ended_at >= c.since
    AND (u.provenance <> 'engine_final' OR u.attempt > 1 OR u.started_at < c.since OR u.ended_at >= c.until)
) r
WHERE c.since < %s AND c.until > %s ORDER BY c.since, c.pod_uid, c.meter
"""  # noqa: S608  only our own text is spliced in


@dataclass(frozen=True, slots=True)
class Unbilled:
    """One counter of one pod in [since, until). Tokens: what the engine `made`, what events that ended there
    `billed`, and `waste`, which was read from the engine and did not reach its client.

    `requests` are those that explain the rest: request_id, finish, attempt, started_at, ended_at, out, waste.
    An engine counts a prompt once for each of a request's n answers; it is billed once.
    """

    pod_uid: UUID
    meter: str
    since: datetime
    until: datetime
    resets: int
    made: int
    billed: int
    waste: int
    requests: list[dict[str, Any]]

    @property
    def rest(self) -> int:
        """Tokens that nobody pays for. Below zero where a request ended here that was counted before."""
        return self.made - self.billed


def unbilled_list(*, since: datetime, until: datetime) -> list[Unbilled]:
    """Every window that touches [since, until), the growing ones as far as the last scrape, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(SQL, [until, since])
        return [Unbilled(*row) for row in cursor.fetchall()]
