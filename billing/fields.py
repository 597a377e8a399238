"""Column types and defaults that the money tables share."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:
    _Decimal = models.DecimalField[int, int]
else:
    _Decimal = models.DecimalField


class PicoField(_Decimal):
    """Money in pico-units: numeric(38,0) in the database, int in Python."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"max_digits": 38, "decimal_places": 0})

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> int | None:
        return None if value is None else int(value)


class ClockTimestamp(models.Func):
    """The database's clock at this very row, not at the start of the transaction."""

    function = "clock_timestamp"
    output_field: "models.Field[Any, datetime]" = models.DateTimeField()
