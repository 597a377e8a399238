"""Engine counters: what an engine says it made, as windows of growth that go on from scrape to scrape."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

PROMPT, GENERATION = "prompt", "generation"
# A window is written once it is this long, or its pod has been silent for as long.
WINDOW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class CounterSample:
    """A counter of one pod as it was scraped; `meter` is `prompt` or `generation`, `value` counts tokens.

    vLLM counts a prompt once for each of a request's n answers, cached tokens included.
    """

    pod_uid: UUID
    meter: str
    at: datetime
    value: int


@dataclass(frozen=True, slots=True)
class Window:
    """An open window of one counter, half-open [since, until): last value, growth and restarts in it."""

    since: datetime
    until: datetime
    value: int
    tokens: int = 0
    resets: int = 0

    @property
    def complete(self) -> bool:
        """Long enough to be written."""
        return self.until - self.since >= WINDOW


def advance(window: Window | None, sample: CounterSample) -> Window:
    """The window after a sample: the first one only starts it, a drop is a restart and counts from zero.

    A sample that is not later than the last changes nothing.
    """
    if window is None:
        return Window(sample.at, sample.at, sample.value)
    if sample.at <= window.until:
        return window
    restarted = sample.value < window.value
    growth = sample.value if restarted else sample.value - window.value
    return Window(window.since, sample.at, sample.value, window.tokens + growth, window.resets + restarted)


def after(window: Window) -> Window:
    """The next window, which begins where a written one ends: a counter's windows leave no gap."""
    return Window(window.until, window.until, window.value)
