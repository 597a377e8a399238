"""What a request may cost: the sheet in force, how long it stays so, and the most it can come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from inference.gateway.core.request import Size
from inference.gateway.core.usage import Counts
from kernel.clock import to_ms
from kernel.pricing import TOKEN_METERS, Sheet, Unrated, in_force, rate, total, worst_case

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """The prices in force in [starts_at, ends_at), None is open; the same instants in ms, as scripts take them.

    `sheet` has no clock windows left; `sheet_sha256` names the published one. A token, whose rate never rounds, costs
    at most `prompt_pico` on its way in and `answer_pico` on its way out.
    """

    sheet: Sheet
    sheet_sha256: bytes
    starts_at: datetime
    ends_at: datetime | None
    from_ms: int
    until_ms: int | None
    prompt_pico: int
    answer_pico: int

    def holds(self, at: datetime) -> bool:
        """Whether `at` lies in it."""
        return self.starts_at <= at and (self.ends_at is None or at < self.ends_at)


class Sheets:
    """The sheets that may price a request: the tenant's own and the public ones."""

    def __init__(self, own: Sequence[Sheet], public: Sequence[Sheet]) -> None:
        self.own, self.public = own, public
        self._last: Window | None = None

    def window(self, at: datetime) -> Window:
        """What is in force at `at`, worked out and hashed once. Unrated where that does not price tokens."""
        if self._last is None or not self._last.holds(at):
            self._last = self._window(at)
        return self._last

    def _window(self, at: datetime) -> Window:
        sheet = in_force(self.own, self.public, at)
        unpriced = TOKEN_METERS - sheet.meters.keys()
        if unpriced:
            raise Unrated(f"{sheet.sku} has no rate for {', '.join(sorted(unpriced))}")
        starts = [s.effective_from for s in (*self.own, *self.public)]
        starts += sheet.borders(at - _DAY, at + _DAY)
        starts_at = max(start for start in starts if start <= at)
        ends_at = min((start for start in starts if start > at), default=None)
        until_ms = None if ends_at is None else to_ms(ends_at)
        plain = sheet.at(at)
        return Window(
            sheet=plain,
            sheet_sha256=sheet.sha256(),
            starts_at=starts_at,
            ends_at=ends_at,
            from_ms=to_ms(starts_at),
            until_ms=until_ms,
            prompt_pico=worst_case(plain, prompt_tokens=1, max_tokens=0),
            answer_pico=worst_case(plain, prompt_tokens=0, max_tokens=1),
        )


@dataclass(slots=True)
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
    window = sheets.window(at)
    amount = window.prompt_pico * size.prompt_tokens + window.answer_pico * answers * size.max_tokens
    return Quote(window.sheet, window.sheet_sha256, amount, window.from_ms, window.until_ms)


def affordable_tokens(sheet: Sheet, *, free_pico: int, size: Size, answers: int) -> int:
    """The largest `max_tokens` that `free_pico` covers for this prompt; 0 where not even the prompt fits."""
    prompt = worst_case(sheet, prompt_tokens=size.prompt_tokens, max_tokens=0)
    token = worst_case(sheet, prompt_tokens=0, max_tokens=1, n=answers)
    return max(0, min((free_pico - prompt) // token, size.max_tokens)) if token else 0


def cost(sheet: Sheet, counts: Counts) -> int:
    """Pico-units that these counts cost under the sheet."""
    return total(rate(sheet, counts.meters()))
