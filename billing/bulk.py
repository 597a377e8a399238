"""Many rows in one statement: the hot path of ingest."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from django.db import connection, models


def insert_rows(model: type[models.Model], rows: Sequence[Mapping[str, Any]]) -> None:
    """INSERT rows given as column → value; money as text, bytes as hex through `hex_bytes`."""
    if not rows:
        return
    types = {field.column: field.db_type(connection) for field in model._meta.concrete_fields if field.column}
    columns = list(rows[0])
    names = ", ".join(f'"{name}"' for name in columns)
    shape = ", ".join(f'"{name}" {types[name]}' for name in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f'INSERT INTO "{model._meta.db_table}" ({names}) '  # noqa: S608  names come from the model
            f"SELECT {names} FROM jsonb_to_recordset(%s::jsonb) AS rows ({shape})",
            [orjson.dumps(list(rows)).decode()],
        )


def hex_bytes(value: bytes) -> str:
    r"""bytea as PostgreSQL reads it from text: \x and hex."""
    return "\\x" + value.hex()
