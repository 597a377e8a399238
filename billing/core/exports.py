"""An invoice as CSV: pure rows to text, one row per invoice line or per event behind it, amounts exact."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

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


@dataclass(frozen=True, slots=True)
class Fact:
    """One rated event behind an invoice line, in the order of its columns; `corrects` names the event it takes back.

    `quantity` and the exact `amount` of all facts of a line add up to the line's own.
    """

    line: int
    event: UUID
    kind: str
    corrects: UUID | None
    start: str
    end: str
    endpoint: str
    deployment: str
    pod: UUID | None
    key: UUID | None
    sku: str
    meter: str
    quantity: int
    price: str
    amount: str


def fact(columns: Sequence[Any]) -> Fact:
    """A fact from columns in its order, but instants, `num_pico, den` for the price and pico-units for the amount."""
    line, event, kind, corrects, start, end, endpoint, deployment, pod, key, sku, meter, quantity, num, den, pico = (
        columns
    )
    return Fact(
        line=line,
        event=event,
        kind=kind,
        corrects=corrects,
        start=start.isoformat(),
        end=end.isoformat(),
        endpoint=endpoint,
        deployment=deployment,
        pod=pod,
        key=key,
        sku=sku,
        meter=meter,
        quantity=quantity,
        price=price_text(int(num), den),
        amount=to_string(int(pico)),
    )


def price_text(num_pico: int, den: int) -> str:
    """The price of one unit: exact, or as a fraction."""
    price = to_string(num_pico)
    return price if den == 1 else f"{price}/{den}"


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
        price=price_text(num_pico, den),
        amount=to_string(amount_pico),
        billed=to_string(amount_minor * PICO // 10 ** MINOR_DIGITS[currency]),
    )


def render(shape: type[Row | Fact], rows: Iterable[Row | Fact]) -> str:
    """RFC 4180 text with a header; an empty field where a value does not apply."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(field.name for field in fields(shape))
    writer.writerows(astuple(item) for item in rows)
    return out.getvalue()
