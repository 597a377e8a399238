"""Invoice drafts: rated lines gathered into invoice lines, and one rounding shared out among them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from kernel.money import MINOR_DIGITS, to_minor


@dataclass(frozen=True, slots=True, order=True)
class LineKey:
    """What makes one invoice line: everything of one SKU, meter and price."""

    sku: str
    meter: str
    num_pico: int
    den: int


@dataclass(frozen=True, slots=True)
class Rated:
    """One rated line that waits for an invoice; amounts in pico-units."""

    event_id: UUID
    key: LineKey
    quantity: int
    amount: int


@dataclass(slots=True)
class DraftLine:
    """Sums of the rated lines of one key, pico-units."""

    key: LineKey
    quantity: int = 0
    amount_pico: int = 0


def gather(rated: Iterable[Rated]) -> dict[LineKey, DraftLine]:
    """Sums by key, in the order of the keys."""
    lines: dict[LineKey, DraftLine] = {}
    for item in sorted(rated, key=lambda item: item.key):
        line = lines.setdefault(item.key, DraftLine(item.key))
        line.quantity += item.quantity
        line.amount_pico += item.amount
    return lines


def share_minor(amounts_pico: Sequence[int], currency: str) -> list[int]:
    """Minor units per line whose sum is the total, rounded once: the largest remainders round up.

    ValueError for a currency without a known number of minor digits.
    """
    total = to_minor(sum(amounts_pico), currency)
    unit = 10 ** (12 - MINOR_DIGITS[currency])
    shares = [amount // unit for amount in amounts_pico]
    by_remainder = sorted(range(len(shares)), key=lambda index: (-(amounts_pico[index] % unit), index))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares
