"""Token packages: which bought tokens a use takes, and what they would have cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True)
class Bought:
    """A package in use: valid in [from_at, until_at), with so many tokens left."""

    from_at: datetime
    until_at: datetime
    left: int


@dataclass(frozen=True, slots=True)
class Used:
    """A rated line after its corrections: tokens at a price of so many pico-units each."""

    at: datetime
    tokens: int
    num_pico: int


def cover(used: Iterable[Used], bought: Iterable[Bought], *, start: datetime) -> int:
    """Pico-units that packages cover of the use from `start` on; `used` is in order and begins with the first package.

    Each use takes from the package that ends soonest. The packages are used up as it goes.
    """
    packages = sorted(bought, key=lambda package: package.until_at)
    covered = 0
    for use in used:
        wanted = use.tokens
        for package in packages:
            if package.from_at <= use.at < package.until_at:
                taken = min(wanted, package.left)
                package.left -= taken
                wanted -= taken
                covered += taken * use.num_pico if use.at >= start else 0
    return covered
