"""Money is exact, rounding is half to even, periods are half-open."""

from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import clock, money


@given(st.integers(-(10**40), 10**40), st.integers(1, 10**12))
def test_division_rounds_to_the_nearest_and_ties_to_even(numerator: int, denominator: int) -> None:
    assert money.div_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@given(st.integers(-(10**30), 10**30))
def test_an_amount_reads_back_as_it_was_written(pico: int) -> None:
    assert money.parse(money.to_string(pico)) == pico


@pytest.mark.parametrize("text", ["1e3", "", "1.", ".5", "1,5", "0.1234567890123", "NaN", "\uff11"])
def test_an_amount_that_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="decimal string"):
        money.parse(text)


def test_strings_are_short_and_exact() -> None:
    assert money.to_string(28_000) == "0.000000028"
    assert money.to_string(12 * money.PICO) == "12"
    assert money.to_string(-money.PICO // 2) == "-0.5"


def test_minor_units_round_once_half_to_even() -> None:
    cent = 10**10
    assert money.to_minor(5 * cent // 2, "USD") == 2
    assert money.to_minor(7 * cent // 2, "USD") == 4
    assert money.to_minor(money.PICO * 3 // 2, "JPY") == 2
    with pytest.raises(ValueError, match="ZZZ"):
        money.to_minor(1, "ZZZ")


def test_a_month_is_half_open_and_rolls_over_the_year() -> None:
    assert clock.month_of(datetime(2026, 12, 31, 23, 59, tzinfo=UTC)) == (
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )


@given(st.integers(0, 4_000_000_000_000))
def test_milliseconds_survive_the_round_trip(unix_ms: int) -> None:
    assert clock.to_ms(clock.from_ms(unix_ms)) == unix_ms


def test_now_carries_its_zone() -> None:
    assert clock.utcnow().tzinfo is UTC
