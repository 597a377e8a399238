"""`manage.py reprice` replays what the engine said; on healthy data nothing differs."""

import io
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from billing.models import UsageEvent
from billing.services import sheet_publish
from kernel.clock import utcnow
from kernel.pricing import IN_HIT, IN_MISS, OUT, ClockWindow, Rate, Sheet
from kernel.usage import ENGINE_PARTIAL
from tests.billing.harbour import LONG_AGO, PRICES, REGION, Harbour, harbour
from tests.billing.test_corrections import correct

SAID = {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 64}}
COUNTS = {IN_HIT: 64, IN_MISS: 36, OUT: 20}


# The latest that ingest accepts: the other tests of today lie before it, only scenarios of later years after it.
AHEAD = timedelta(minutes=2)


def reprice(since: str) -> tuple[list[str], int, int, int]:
    """The lines of differences, how many were replayed, how many differ, and the exit status."""
    out, status = io.StringIO(), 0
    try:
        call_command("reprice", since=since, stdout=out)
    except SystemExit as left:
        status = int(left.code or 0)
    *lines, summary = out.getvalue().splitlines()
    replayed, differ = (int(word) for word in summary.split() if word.isdigit())
    return lines, replayed, differ, status


def book(berth: Harbour, **changes: object) -> UsageEvent:
    event = berth.event(ended_at=utcnow() + AHEAD, **changes)
    assert berth.ingest(event).booked == 1
    return UsageEvent.objects.get(event_id=event.event_id)


def test_healthy_books_show_no_difference_and_a_wrong_count_is_named(database: None) -> None:
    berth = harbour()
    since = (utcnow() + AHEAD).isoformat()
    _, before, *healthy = reprice(since)
    assert healthy == [0, 0]
    good = book(berth, counts=COUNTS, engine_usage=SAID)
    book(berth, counts={IN_MISS: 100, OUT: 3}, engine_usage=SAID, provenance=ENGINE_PARTIAL)
    book(berth, counts={IN_MISS: 5, OUT: 0})
    correct(good.event_id, {OUT: -20})
    assert reprice(since) == ([], before + 3, 0, 0)
    wrong = book(berth, counts={IN_MISS: 100, OUT: 20}, engine_usage=SAID)
    assert reprice(since) == (
        [
            f"{wrong.event_id}: booked {{'out': 20, 'in_miss': 100}} = 0.0000364, "
            "today {'in_hit': 64, 'in_miss': 36, 'out': 20} = 0.000020272"
        ],
        before + 4,
        1,
        1,
    )


def test_what_was_priced_by_a_clock_window_is_replayed_by_it(database: None) -> None:
    berth = harbour(money=0)
    dear = ClockWindow(frozenset(range(8)), 0, 24 * 60, {OUT: Rate(1_000_000)})
    berth.sheet = Sheet(f"{berth.sku}-clock", REGION, "USD", LONG_AGO, dict(PRICES), windows=(dear,))
    berth.sku = berth.sheet.sku
    sheet_publish(sheet=berth.sheet, actor="t")
    since = (utcnow() + AHEAD).isoformat()
    lines, before, *_ = reprice(since)
    book(berth, counts={OUT: 20}, quoted_pico=20_000_000)
    assert reprice(since)[:2] == (lines, before + 1)


def test_since_is_an_instant(database: None) -> None:
    with pytest.raises(CommandError, match="--since is a date or an instant"):
        call_command("reprice", since="yesterday")
    assert reprice("2099-01-01") == ([], 0, 0, 0)
