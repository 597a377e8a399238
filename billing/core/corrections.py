"""Corrections: rated lines that take quantities back, and what a credit note makes of them in minor units."""

from collections.abc import Callable, Mapping
from typing import Any

from kernel.money import MINOR_DIGITS, div_half_even
from kernel.pricing import METERS, Rate, RatedLine


class TooMuch(ValueError):
    """More than is left of an event: the sentence for the person who asked."""


def check_deltas(counts: Any) -> None:
    """ValueError for what no correction can be."""
    if (
        not isinstance(counts, Mapping)
        or not counts
        or any(type(delta) is not int or delta >= 0 for delta in counts.values())
    ):
        raise ValueError("counts holds a negative whole number per meter")


def reverse(
    counts: Mapping[str, int],
    *,
    rates: Mapping[str, Rate],
    left: Mapping[str, int],
    rated: Callable[[Rate], int],
) -> tuple[tuple[RatedLine, ...], int]:
    """Lines of negative deltas at the rates of the event's own lines, and the seconds rated before them.

    `left` is what earlier corrections left of each meter; `rated` gives the seconds that stand on the books
    under a rate: a cumulative meter goes back as it came, round(after) − round(before). ValueError for a
    delta that is none, TooMuch for one beyond what is left.
    """
    check_deltas(counts)
    lines, before = [], 0
    for meter, delta in sorted(counts.items()):
        if left.get(meter, 0) + delta < 0:
            raise TooMuch(f"{left.get(meter, 0)} {meter} are left of this event; take back at most that")
        rate = rates[meter]
        since = rated(rate) if METERS[meter][1] else 0
        before = max(before, since)
        amount = _amount(since + delta, rate) - _amount(since, rate)
        lines.append(RatedLine(meter, delta, rate.num_pico, rate.den, amount))
    return tuple(lines), before


def credit_minor(*, line_minor: int, credited_minor: int, left_pico: int, currency: str) -> int:
    """Minor units that a further credit of one invoice line is worth, ≥ 0.

    The line keeps what is left of it, rounded, and never more than it bills: nothing left credits the rest.
    """
    left_minor = div_half_even(left_pico, 10 ** (12 - MINOR_DIGITS[currency]))
    return max(0, line_minor - credited_minor - min(line_minor, left_minor))


def _amount(quantity: int, rate: Rate) -> int:
    return div_half_even(quantity * rate.num_pico, rate.den)
