"""The database's clock: facts, attempts and decisions of several processes are ordered by one clock alone."""

from datetime import datetime

from django.db import connection


def database_now() -> datetime:
    """The instant that PostgreSQL reads now, also inside a transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now
