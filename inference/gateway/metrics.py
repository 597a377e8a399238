"""Counters of one process, in Prometheus' text format."""

from collections import Counter
from collections.abc import Mapping

_HELP = {
    "gateway_requests_total": "Requests by route and how they ended.",
    "gateway_tokens_total": "Tokens in usage events, by meter.",
    "gateway_waste_tokens_total": "Output tokens read from engines and not delivered.",
    "gateway_retries_total": "Second attempts on another replica.",
    "gateway_clamped_total": "Engine counts that were not believed.",
    "gateway_uncounted_total": "Answers that were delivered without a count: an alarm.",
    "gateway_journal_cuts_total": "Journals that were cut at a torn or damaged record: an alarm.",
    "gateway_watch_failures_total": "Looks at time limits, revocations or the disk that failed: an alarm.",
}


class Metrics:
    """Adds and prints; labels are fixed words, never a client's text."""

    def __init__(self) -> None:
        self._values: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def add(self, name: str, amount: int = 1, **labels: str) -> None:
        """Count. `name` is one of the names above."""
        self._values[name, tuple(labels.items())] += amount

    def ended(self, *, route: str, end: str, meters: Mapping[str, int]) -> None:
        """A request has its event: one more of its kind, and its tokens."""
        values = self._values
        values["gateway_requests_total", (("route", route), ("end", end))] += 1
        for meter, count in meters.items():
            values["gateway_tokens_total", (("meter", meter),)] += count

    def render(self, gauges: dict[str, int]) -> str:
        """The exposition, with the caller's gauges."""
        lines = []
        for name, text in _HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
            lines += [f"{n}{_text(labels)} {value}" for (n, labels), value in sorted(self._values.items()) if n == name]
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value}"]
        return "\n".join(lines) + "\n"


def _text(labels: tuple[tuple[str, str], ...]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in labels)
    return f"{{{inside}}}" if inside else ""
