"""An invoice as CSV: pure rows to text, one line per invoice line, amounts exact."""

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from datetime import datetime

from kernel.money import MINOR_DIGITS, PICO, to_string


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file, in the order of its columns.

    `price` is of one unit, exact, or a fraction `amount/units`; `amount` is exact and `billed` its rounded share
    of the invoice's total, both in the currency. `credits_line` is the line of the invoice that a credit note cites.
    """

    invoice: str
    kind: str
    status: str
    period_start: str
    period_end: str
    currency: str
    line: int
    credits_line: int | None
    sku: str
    meter: str
    quantity: int
    price: str
    amount: str
    billed: str


def row(
    *,
    invoice: str,
    kind: str,
    status: str,
    period: tuple[datetime, datetime],
    currency: str,
    line: int,
    credits_line: int | None,
    sku: str,
    meter: str,
    quantity: int,
    num_pico: int,
    den: int,
    amount_pico: int,
    amount_minor: int,
) -> Row:
    """A row from exact integers: pico-units and minor units."""
    price = to_string(num_pico)
    return Row(
        invoice=invoice,
        kind=kind,
        status=status,
        period_start=period[0].isoformat(),
        period_end=period[1].isoformat(),
        currency=currency,
        line=line,
        credits_line=credits_line,
        sku=sku,
        meter=meter,
        quantity=quantity,
        price=price if den == 1 else f"{price}/{den}",
        amount=to_string(amount_pico),
        billed=to_string(amount_minor * PICO // 10 ** MINOR_DIGITS[currency]),
    )


def render(rows: Iterable[Row]) -> str:
    """RFC 4180 text with a header; an empty field where a value does not apply."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(astuple(item) for item in rows)
    return out.getvalue()
