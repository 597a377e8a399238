"""What an engine says it made stands beside the bill; more billed than made stops invoicing."""

from datetime import datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from django.db import transaction
from hypothesis import given
from hypothesis import strategies as st

from billing import books, invoicing
from billing.core.counters import GENERATION, PROMPT, WINDOW, CounterSample, Window, advance
from billing.corrections import usage_correct
from billing.counters import engine_counters_record
from billing.models import EngineCounterDelta
from kernel.clock import month_of, utcnow
from kernel.pricing import IN_HIT, IN_MISS, OUT
from kernel.problems import Problem
from tests.billing.harbour import Harbour, harbour
from tests.billing.test_invoices import draft

# Whole hours of last month: a day before it ended.
NOON = month_of(utcnow())[0] - timedelta(days=1)
FIFTEEN_S = timedelta(seconds=15)


def scrape(pod: UUID, values: list[int], *, meter: str = GENERATION, start: datetime = NOON) -> int:
    """One sample each half a minute, recorded one by one as a scraper does; how many windows were written."""
    samples = [CounterSample(pod, meter, start + place * 2 * FIFTEEN_S, value) for place, value in enumerate(values)]
    return sum(engine_counters_record([sample]) for sample in samples)


def deltas(pod: UUID) -> list[tuple[int, int]]:
    rows = EngineCounterDelta.objects.filter(pod_uid=pod).order_by("period")
    return [(row.tokens, row.resets) for row in rows]


def serve(berth: Harbour, pod: UUID, **counts: int) -> UUID:
    """A request of a minute, wholly inside the first five."""
    event = berth.event(
        pod_uid=pod, started_at=NOON + timedelta(minutes=1), ended_at=NOON + timedelta(minutes=2), counts=counts
    )
    assert berth.ingest(event).booked == 1
    return event.event_id


def test_growth_is_written_in_windows_that_leave_no_gap(database: None) -> None:
    pod = uuid4()
    assert scrape(pod, [100, 110, 110, *[120] * 8, 130, *[150] * 9]) == 2
    rows = list(EngineCounterDelta.objects.filter(pod_uid=pod).order_by("period"))
    assert [(row.tokens, row.resets) for row in rows] == [(20, 0), (30, 0)]
    assert (rows[0].period.lower, rows[0].period.upper) == (NOON, rows[1].period.lower)
    assert rows[1].period.upper == NOON + 2 * WINDOW


def test_fault_26_a_drop_is_a_restart_that_counts_from_zero_and_is_said(database: None) -> None:
    pod = uuid4()
    scrape(pod, [1000, 1010, 7, *[9] * 9])
    assert deltas(pod) == [(10 + 7 + 2, 1)]


def test_a_repeat_and_a_sample_out_of_order_change_nothing(database: None) -> None:
    pod = uuid4()
    scrape(pod, [0, 10])
    scrape(pod, [0, 10])
    scrape(pod, [50], start=NOON - FIFTEEN_S)
    scrape(pod, [30], start=NOON + WINDOW)
    assert deltas(pod) == [(30, 0)]


def test_a_silent_pod_has_its_last_window_written_as_far_as_it_went(database: None) -> None:
    gone, other = uuid4(), uuid4()
    scrape(gone, [0, 40])
    scrape(other, [0], start=NOON + timedelta(minutes=20))
    (row,) = EngineCounterDelta.objects.filter(pod_uid=gone)
    assert (row.tokens, row.period.upper) == (40, NOON + 2 * FIFTEEN_S)
    scrape(other, [0], start=NOON + timedelta(minutes=21))
    assert deltas(gone) == [(40, 0)]


def test_another_meter_and_a_value_below_zero_are_refused(database: None) -> None:
    for sample in (CounterSample(uuid4(), "sun", NOON, 1), CounterSample(uuid4(), PROMPT, NOON, -1)):
        with pytest.raises(Problem, match="invalid_parameter"):
            engine_counters_record([sample])
    assert engine_counters_record([]) == 0


def test_what_the_engine_made_covers_what_is_billed(database: None) -> None:
    berth, pod = harbour(), uuid4()
    serve(berth, pod, **{IN_HIT: 60, IN_MISS: 40, OUT: 20})
    # With n answers vLLM counts the prompt n times: more than is billed, never less.
    scrape(pod, [0, *[400] * 10], meter=PROMPT)
    scrape(pod, [0, *[20] * 10])
    assert books.check() == []


@pytest.mark.parametrize(("meter", "made"), [(PROMPT, 99), (GENERATION, 19)])
def test_more_billed_than_made_stops_invoicing_until_it_is_corrected(database: None, meter: str, made: int) -> None:
    berth, pod = harbour(), uuid4()
    event_id = serve(berth, pod, **{IN_HIT: 60, IN_MISS: 40, OUT: 20})
    invoice = draft(berth, months_ago=1)
    with transaction.atomic():
        scrape(pod, [0, *[made] * 10], meter=meter)
        with pytest.raises(Problem, match=rf"red \(I23b\).*{pod}/{meter}/.*/{made}/{made + 1}"):
            invoicing.invoice_issue(invoice_id=invoice.id, actor="t")
        over = {OUT: -1} if meter == GENERATION else {IN_MISS: -1}
        usage_correct(event_id=event_id, counts=over, actor="ann", reason="the engine made less")
        assert invoicing.invoice_issue(invoice_id=invoice.id, actor="t").status == "issued"


def test_fault_26_a_restart_or_a_request_that_reaches_beyond_the_counters_proves_nothing(database: None) -> None:
    berth, restarted, late = harbour(), uuid4(), uuid4()
    serve(berth, restarted, **{OUT: 20})
    serve(berth, late, **{OUT: 20})
    scrape(restarted, [50, *[3] * 10])
    scrape(late, [0, *[3] * 11], start=NOON + timedelta(minutes=1, seconds=30))
    assert books.check() == []


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_growth_adds_up_to_what_each_life_of_the_engine_counted(values: list[int]) -> None:
    window: Window | None = None
    for place, value in enumerate(values):
        window = advance(window, CounterSample(UUID(int=1), PROMPT, NOON + place * FIFTEEN_S, value))
    assert window is not None
    ends = [before for before, after in pairwise(values) if after < before]
    assert window.tokens == sum(ends) + values[-1] - values[0]
    assert window.resets == len(ends)
