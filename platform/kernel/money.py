"""Money: integer pico-units (10⁻¹² of a currency) inside, decimal strings outside, never a float."""

import re

PICO = 10**12
MINOR_DIGITS = {"USD": 2, "EUR": 2, "CNY": 2, "JPY": 0}
_AMOUNT = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,12})?")


def div_half_even(numerator: int, denominator: int) -> int:
    """numerator / denominator to the nearest integer, ties to even; denominator > 0."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient & 1):
        quotient += 1
    return quotient


def parse(text: str) -> int:
    """'12.34' → pico-units. ValueError where it is no plain decimal of at most 12 places."""
    if not _AMOUNT.fullmatch(text):
        raise ValueError("an amount is a decimal string such as '12.34', at most 12 decimal places")
    # Digit by digit: Decimal's context would round beyond 28 digits.
    whole, _, places = text.removeprefix("-").partition(".")
    pico = int(whole) * PICO + int(places.ljust(12, "0"))
    return -pico if text.startswith("-") else pico


def to_string(pico: int) -> str:
    """Pico-units as the shortest exact decimal string, without an exponent: the JSON form."""
    whole, places = divmod(abs(pico), PICO)
    text = f"{whole}.{places:012}".rstrip("0").rstrip(".")
    return f"-{text}" if pico < 0 else text


def to_minor(pico: int, currency: str) -> int:
    """Pico-units in minor units (cents), rounded half to even: done once, on an invoice's header.

    ValueError for a currency without a known number of minor digits.
    """
    if currency not in MINOR_DIGITS:
        raise ValueError(f"no minor unit is known for {currency}")
    return div_half_even(pico, 10 ** (12 - MINOR_DIGITS[currency]))
