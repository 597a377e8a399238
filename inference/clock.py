"""The database's clock: facts, attempts and decisions of several processes are ordered by one clock alone."""

from datetime import datetime, timedelta

from django.db import connection
from django.db.models import DateTimeField, DurationField, Func, Value
from django.db.models.expressions import CombinedExpression


def database_now() -> datetime:
    """The instant that PostgreSQL reads now, also inside a transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now


def database_after(span: timedelta) -> CombinedExpression:
    """The instant that far ahead, read by the statement that writes it."""
    now = Func(function="clock_timestamp", output_field=DateTimeField())
    return now + Value(span, output_field=DurationField())
