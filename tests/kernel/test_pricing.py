"""One function prices: exact per token, cumulative per second, never a default."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import pricing
from kernel.pricing import ACCEL_SECOND, IN_HIT, IN_MISS, OUT, Rate, Sheet, Unrated

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
    [({"version": 2}, "version 2"), ({"meters": {"bogus": {"num_pico": "1", "den": "1"}}}, "bogus")],
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
