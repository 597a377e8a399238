"""Many rows written at once, each with values of its own."""

from collections.abc import Collection

from django.db import connection
from django.db.models import Model


def update_each(rows: Collection[Model], fields: Collection[str]) -> None:
    """As `bulk_update`, by a short statement per row in one round trip.

    Django's builds a CASE per value, which cost more than all else of a pass together.
    """
    if not rows:
        return
    meta = next(iter(rows))._meta
    columns = [item for item in meta.concrete_fields if item.name in fields]
    values = [
        [*(item.get_db_prep_save(getattr(row, item.attname), connection) for item in columns), row.pk] for row in rows
    ]
    places = ", ".join(f'"{item.column}" = %s' for item in columns)
    statement = f'UPDATE "{meta.db_table}" SET {places} WHERE "{meta.pk.column}" = %s'  # noqa: S608  names of ours
    with connection.cursor() as cursor:
        cursor.executemany(statement, values)
