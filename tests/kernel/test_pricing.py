"""One function prices: exact per token, cumulative per second, never a default."""

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import pricing
from kernel.pricing import (
    ACCEL_SECOND,
    HOLIDAY,
    IN_HIT,
    IN_MISS,
    KTPM_DAY,
    OUT,
    REASONING,
    REBATE,
    ClockWindow,
    Package,
    Rate,
    Sheet,
    Tier,
    Unrated,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
TOKENS = Sheet("m:shared", "local", "USD", START, {IN_HIT: Rate(28_000), IN_MISS: Rate(280_000), OUT: Rate(420_000)})


def accel(num_pico: int, den: int = 3600) -> Sheet:
    return Sheet("m:dedicated:cpu", "local", "USD", START, {ACCEL_SECOND: Rate(num_pico, den)})


def test_tokens_price_exactly_and_a_zero_count_has_no_line() -> None:
    lines = pricing.rate(TOKENS, {OUT: 7, IN_MISS: 100, IN_HIT: 0})
    assert [(line.meter, line.quantity, line.amount) for line in lines] == [
        (IN_MISS, 100, 28_000_000),
        (OUT, 7, 2_940_000),
    ]
    assert pricing.total(lines) == 30_940_000


@given(st.lists(st.integers(1, 3600), min_size=1, max_size=30), st.integers(0, 10**13))
def test_cumulative_slices_never_drift_by_more_than_half_a_pico(slices: list[int], num_pico: int) -> None:
    sheet, before, charged = accel(num_pico), 0, 0
    for seconds in slices:
        charged += pricing.total(pricing.rate(sheet, {ACCEL_SECOND: seconds}, seconds_before=before))
        before += seconds
    assert abs(charged - Fraction(before * num_pico, 3600)) <= Fraction(1, 2)


def test_a_meter_without_a_rate_is_unrated() -> None:
    with pytest.raises(Unrated, match="accel_second"):
        pricing.rate(TOKENS, {ACCEL_SECOND: 1})


def test_the_worst_case_takes_the_dearer_input_and_every_answer() -> None:
    assert pricing.worst_case(TOKENS, prompt_tokens=10, max_tokens=5, n=2) == 10 * 280_000 + 10 * 420_000
    odd = Sheet("m", "r", "USD", START, {IN_HIT: Rate(9), IN_MISS: Rate(1), OUT: Rate(0)})
    assert pricing.worst_case(odd, prompt_tokens=10, max_tokens=5) == 90


def test_a_sheet_reads_back_from_its_body_and_keeps_its_name() -> None:
    again = pricing.sheet_from_body(TOKENS.body())
    assert again == TOKENS
    assert again.sha256() == TOKENS.sha256()
    assert len(TOKENS.sha256()) == 32


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"version": 3}, "version 3"), ({"meters": {"bogus": {"num_pico": "1", "den": "1"}}}, "bogus")],
)
def test_an_unknown_body_is_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pricing.sheet_from_body(TOKENS.body() | change)


def test_the_tenants_sheet_comes_before_the_public_one_until_it_ends() -> None:
    own = Sheet("m", "r", "USD", START + timedelta(days=1), {OUT: Rate(1)}, tenant_id="t")
    ended = Sheet("m", "r", "USD", START + timedelta(days=2), {}, tenant_id="t")
    public = [TOKENS, Sheet("m", "r", "USD", START + timedelta(days=3), {OUT: Rate(2)})]
    at = [pricing.in_force([own, ended], public, START + timedelta(days=day)) for day in range(4)]
    assert at == [TOKENS, own, TOKENS, public[1]]
    with pytest.raises(Unrated):
        pricing.in_force([own], public, START - timedelta(seconds=1))


# Peak on Monday to Friday, 09:00-12:00 and 14:00-18:00 in Beijing (01-04 and 06-10 UTC), not on 1 October.
PEAK = {IN_HIT: Rate(56_000), IN_MISS: Rate(560_000), OUT: Rate(840_000)}
WEEK = frozenset(range(1, 6))
BEIJING = Sheet(
    "m:shared",
    "local",
    "USD",
    START,
    TOKENS.meters,
    windows=(ClockWindow(WEEK, 9 * 60, 12 * 60, PEAK), ClockWindow(WEEK, 14 * 60, 18 * 60, PEAK)),
    utc_offset_min=8 * 60,
    holidays=frozenset({date(2026, 10, 1)}),
)


@pytest.mark.parametrize(
    ("at", "dear"),
    [
        ("2026-09-30T00:59:59", False),  # Wednesday 08:59:59 in Beijing
        ("2026-09-30T01:00:00", True),
        ("2026-09-30T03:59:59", True),
        ("2026-09-30T04:00:00", False),
        ("2026-09-30T06:00:00", True),
        ("2026-10-01T06:00:00", False),  # a Thursday, and a holiday
        ("2026-10-03T06:00:00", False),  # Saturday
        ("2026-10-04T23:30:00", False),  # Monday 07:30 there
        ("2026-10-05T01:30:00", True),  # Monday 09:30 there
    ],
)
def test_a_clock_window_prices_by_the_local_hour_weekday_and_holiday(at: str, dear: bool) -> None:
    cut = BEIJING.at(datetime.fromisoformat(at).replace(tzinfo=UTC))
    assert cut.meters == (PEAK if dear else TOKENS.meters)
    assert cut.sha256() == BEIJING.sha256() != TOKENS.sha256()


def test_a_window_of_holidays_prices_them_and_the_borders_are_where_prices_change() -> None:
    festive = ClockWindow(frozenset({HOLIDAY}), 0, 24 * 60, {OUT: Rate(1)})
    sheet = Sheet("m", "r", "USD", START, TOKENS.meters, windows=(festive,), holidays=frozenset({date(2026, 10, 1)}))
    assert sheet.at(datetime(2026, 10, 1, 12, tzinfo=UTC)).meters == {**TOKENS.meters, OUT: Rate(1)}
    assert sheet.at(datetime(2026, 10, 2, tzinfo=UTC)).meters == TOKENS.meters
    day = datetime(2026, 9, 30, tzinfo=UTC)
    borders = [f"{at:%d %H:%M}" for at in BEIJING.borders(day, day + timedelta(days=1))]
    assert borders == ["30 01:00", "30 04:00", "30 06:00", "30 10:00", "30 16:00"]
    assert list(TOKENS.borders(day, day + timedelta(days=1))) == []
    assert TOKENS.at(day) is TOKENS


@given(st.integers(0, 7 * 24 * 60 - 1))
def test_between_two_borders_nothing_changes(minute: int) -> None:
    at = datetime(2026, 9, 28, tzinfo=UTC) + timedelta(minutes=minute)
    last = max(BEIJING.borders(at - timedelta(days=1), at + timedelta(microseconds=1)))
    assert BEIJING.at(last).meters == BEIJING.at(at).meters


def test_money_is_set_aside_by_the_dearest_hour() -> None:
    assert BEIJING.dearest(OUT) == PEAK[OUT]
    assert TOKENS.dearest(ACCEL_SECOND) is None


def test_a_sheet_with_windows_and_tiers_reads_back_and_a_plain_one_keeps_its_old_name() -> None:
    tiered = Sheet("m", "r", "USD", START, TOKENS.meters, tiers=(Tier(10**15, 50), Tier(10**16, 100)))
    packed = Sheet("m", "r", "USD", START, TOKENS.meters, packages=(Package("ten", 10_000_000, 10**12, 30),))
    for sheet in (BEIJING, tiered, packed):
        assert sheet.body()["version"] == 2
        assert pricing.sheet_from_body(sheet.body()) == sheet
    assert TOKENS.body()["version"] == 1


def test_reasoning_costs_what_output_costs_unless_the_sheet_says_otherwise() -> None:
    assert pricing.total(pricing.rate(TOKENS, {REASONING: 10, OUT: 5})) == 15 * 420_000
    own = Sheet("m", "r", "USD", START, {**TOKENS.meters, REASONING: Rate(500_000)})
    assert pricing.total(pricing.rate(own, {REASONING: 10, OUT: 5})) == 5_000_000 + 5 * 420_000
    assert pricing.worst_case(own, prompt_tokens=0, max_tokens=2) == 2 * 500_000


def test_a_reserved_day_is_priced_per_ktpm() -> None:
    sheet = Sheet("m:reserved", "r", "USD", START, {KTPM_DAY: Rate(12_100_000_000_000)})
    assert pricing.total(pricing.rate(sheet, {KTPM_DAY: 30})) == 363_000_000_000_000


def test_tiers_rebate_what_lies_beyond_them_whatever_the_order_of_use() -> None:
    # 5 % off beyond 1,000, 10 % off beyond 10,000: of 12,000 that is 450 and 200.
    tiers = (Tier(1_000, 50), Tier(10_000, 100))
    assert [pricing.rebate(tiers, spent) for spent in (0, 1_000, 2_000, 10_000, 12_000)] == [0, 0, 50, 450, 650]
    assert pricing.rebate((), 12_000) == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"meters": {REBATE: Rate(1)}}, "rebate is no meter"),
        ({"meters": {OUT: Rate(1, 3)}}, "whole pico-units"),
        ({"meters": {OUT: Rate(-1)}}, "0 or more"),
        ({"windows": (ClockWindow(WEEK, 60, 60, {}),)}, "within one local day"),
        ({"windows": (ClockWindow(frozenset({8}), 0, 60, {}),)}, "0 (holiday) to 7"),
        ({"windows": (ClockWindow(WEEK, 0, 60, {ACCEL_SECOND: Rate(1)}),)}, "outside it"),
        ({"tiers": (Tier(10, 50), Tier(10, 60))}, "tiers rise"),
        ({"tiers": (Tier(0, 1001),)}, "1 to 1000"),
        ({"packages": (Package("p", 0, 1, 1),)}, "above zero"),
        ({"packages": (Package("p", 1, 1, 1), Package("p", 2, 1, 1))}, "names of their own"),
    ],
)
def test_an_impossible_sheet_says_what_is_wrong(changes: dict[str, object], says: str) -> None:
    sheet = Sheet("m", "r", "USD", START, **({"meters": {OUT: Rate(1)}} | changes))  # type: ignore[arg-type]
    assert any(says in wrong for wrong in sheet.wrongs())
    assert list(BEIJING.wrongs()) == []
