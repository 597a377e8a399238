"""System check: every table with a tenant is forced under row level security, every link carries it."""

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connection

UNPROTECTED = """
SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace AND NOT a.attisdropped
  AND NOT (c.relrowsecurity AND c.relforcerowsecurity
           AND EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid))
ORDER BY 1
"""
# A foreign key between two tenant tables that does not carry tenant_id, with no twin that does.
PLAIN_LINKS = """
WITH tenanted AS (
  SELECT a.attrelid, a.attnum FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  WHERE a.attname = 'tenant_id' AND NOT a.attisdropped AND c.relkind IN ('r', 'p')
    AND c.relnamespace = 'public'::regnamespace),
links AS (
  SELECT k.conrelid, k.confrelid, k.conkey, t.attnum = ANY (k.conkey) AS carries
  FROM pg_constraint k JOIN tenanted t ON t.attrelid = k.conrelid JOIN tenanted f ON f.attrelid = k.confrelid
  WHERE k.contype = 'f')
SELECT l.conrelid::regclass::text, a.attname, l.confrelid::regclass::text
FROM links l JOIN pg_attribute a ON a.attrelid = l.conrelid AND a.attnum = l.conkey[1]
WHERE NOT l.carries AND NOT EXISTS (
  SELECT 1 FROM links twin
  WHERE twin.carries AND twin.conrelid = l.conrelid AND twin.confrelid = l.confrelid
    AND twin.conkey @> l.conkey)
ORDER BY 1, 2
"""


@register(Tags.database)
def tenancy_is_enforced(*, databases: Sequence[str] | None = None, **_: Any) -> Sequence[CheckMessage]:
    """Errors tenants.E001 (no forced policy) and tenants.E002 (a link that may cross tenants)."""
    if not databases:
        return []
    with connection.cursor() as cursor:
        cursor.execute(UNPROTECTED)
        open_tables = [row[0] for row in cursor.fetchall()]
        cursor.execute(PLAIN_LINKS)
        open_links = cursor.fetchall()
    return [
        Error(
            f"{table} has tenant_id but no forced row level security",
            hint="add tenants.rls.protect(…) to its migration",
            id="tenants.E001",
        )
        for table in open_tables
    ] + [
        Error(
            f"{table}.{column} refers to {target} without carrying tenant_id",
            hint="add tenants.rls.composite_fk(…) to its migration",
            id="tenants.E002",
        )
        for table, column, target in open_links
    ]
