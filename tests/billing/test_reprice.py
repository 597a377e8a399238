"""`manage.py reprice` replays what the engine said; on healthy data nothing differs."""

import io
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from billing.models import UsageEvent
from kernel.clock import utcnow
from kernel.pricing import IN_HIT, IN_MISS, OUT
from kernel.usage import ENGINE_PARTIAL
from tests.billing.harbour import Harbour, harbour
from tests.billing.test_corrections import correct

SAID = {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 64}}
COUNTS = {IN_HIT: 64, IN_MISS: 36, OUT: 20}


@pytest.fixture
def ahead() -> timedelta:
    """Events of the other tests lie before it: a window of this test's own, within what ingest accepts."""
    return timedelta(minutes=2)


def reprice(since: str) -> tuple[str, int]:
    out = io.StringIO()
    try:
        call_command("reprice", since=since, stdout=out)
    except SystemExit as left:
        return out.getvalue(), int(left.code or 0)
    return out.getvalue(), 0


def book(berth: Harbour, ahead: timedelta, **changes: object) -> UsageEvent:
    event = berth.event(ended_at=utcnow() + ahead, **changes)
    assert berth.ingest(event).booked == 1
    return UsageEvent.objects.get(event_id=event.event_id)


def test_healthy_books_show_no_difference_and_a_wrong_count_is_named(database: None, ahead: timedelta) -> None:
    berth = harbour()
    since = (utcnow() + ahead).isoformat()
    good = book(berth, ahead, counts=COUNTS, engine_usage=SAID)
    book(berth, ahead, counts={IN_MISS: 100, OUT: 3}, engine_usage=SAID, provenance=ENGINE_PARTIAL)
    book(berth, ahead, counts={IN_MISS: 5, OUT: 0})
    correct(good.event_id, {OUT: -20})
    assert reprice(since) == ("3 requests replayed, 0 differ\n", 0)
    wrong = book(berth, ahead, counts={IN_MISS: 100, OUT: 20}, engine_usage=SAID)
    text, status = reprice(since)
    assert status == 1
    assert text == (
        f"{wrong.event_id}: booked {{'out': 20, 'in_miss': 100}} = 0.0000364, "
        "today {'in_hit': 64, 'in_miss': 36, 'out': 20} = 0.000020272\n4 requests replayed, 1 differ\n"
    )


def test_since_is_an_instant(database: None) -> None:
    with pytest.raises(CommandError, match="--since is a date or an instant"):
        call_command("reprice", since="yesterday")
    assert reprice((utcnow() + timedelta(days=1)).date().isoformat())[1] == 0
