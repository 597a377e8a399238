"""What a request may cost: the sheet in force, how long it stays so, and the most it can come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from inference.gateway.core.request import Size
from inference.gateway.core.usage import Counts
from kernel.clock import to_ms
from kernel.pricing import IN_HIT, IN_MISS, OUT, Sheet, Unrated, in_force, rate, total, worst_case


class Sheets:
    """The sheets that may price a request: the tenant's own and the public ones. Each is hashed once."""

    def __init__(self, own: Sequence[Sheet], public: Sequence[Sheet]) -> None:
        self.own, self.public = own, public
        self._sha256 = {id(sheet): sheet.sha256() for sheet in (*own, *public)}

    def sha256(self, sheet: Sheet) -> bytes:
        """The name of one of these sheets."""
        return self._sha256[id(sheet)]


@dataclass(frozen=True, slots=True)
class Quote:
    """`amount_pico` covers the worst case; the sheet is in force in [from_ms, until_ms), None is open.

    `sheet_sha256` names the sheet, as in `Sheet.sha256`.
    """

    sheet: Sheet
    sheet_sha256: bytes
    amount_pico: int
    from_ms: int
    until_ms: int | None


def quote(sheets: Sheets, *, at: datetime, size: Size, answers: int) -> Quote:
    """The quote at `at`. Unrated where no sheet is in force or the sheet does not price tokens."""
    sheet = in_force(sheets.own, sheets.public, at)
    unpriced = {IN_HIT, IN_MISS, OUT} - sheet.meters.keys()
    if unpriced:
        raise Unrated(f"{sheet.sku} has no rate for {', '.join(sorted(unpriced))}")
    starts = [s.effective_from for s in (*sheets.own, *sheets.public)]
    later = [start for start in starts if start > at]
    return Quote(
        sheet=sheet,
        sheet_sha256=sheets.sha256(sheet),
        amount_pico=worst_case(sheet, prompt_tokens=size.prompt_tokens, max_tokens=size.max_tokens, n=answers),
        from_ms=to_ms(max(start for start in starts if start <= at)),
        until_ms=to_ms(min(later)) if later else None,
    )


def affordable_tokens(sheet: Sheet, *, free_pico: int, size: Size, answers: int) -> int:
    """The largest `max_tokens` that `free_pico` covers for this prompt; 0 where not even the prompt fits."""
    prompt = worst_case(sheet, prompt_tokens=size.prompt_tokens, max_tokens=0)
    token = worst_case(sheet, prompt_tokens=0, max_tokens=1, n=answers)
    return max(0, min((free_pico - prompt) // token, size.max_tokens)) if token else 0


def cost(sheet: Sheet, counts: Counts) -> int:
    """Pico-units that these counts cost under the sheet."""
    return total(rate(sheet, counts.meters()))
