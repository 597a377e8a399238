"""One at a time across processes: PostgreSQL's session-level advisory locks."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection


@contextmanager
def alone(role: str, key: str) -> Iterator[bool]:
    """True while nobody else is at `key` in this role; a lost connection ends the claim."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", [role, key])
        granted = bool(cursor.fetchone()[0])
    try:
        yield granted
    finally:
        if granted and connection.is_usable():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(hashtext(%s), hashtext(%s))", [role, key])
