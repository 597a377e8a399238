"""Posting plan: which hold or account pays for what, in spending order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(slots=True)
class OpenHold:
    """A hold that may be drawn from; `open` is what it has left, pico-units."""

    hold_id: UUID
    account_id: int
    open: int


@dataclass(frozen=True, slots=True)
class Available:
    """An account and what may still leave it, pico-units."""

    account_id: int
    amount: int


@dataclass(slots=True)
class Draws:
    """`by_hold` are the draws of one transaction; `uncovered` indexes the costs that no hold covers whole."""

    by_hold: dict[UUID, int] = field(default_factory=dict)
    uncovered: list[int] = field(default_factory=list)


def spread(amount: int, parts: Iterable[int]) -> list[int]:
    """How much of `amount` each part bears, first parts first; less than `amount` where they are too small."""
    shares = []
    for part in parts:
        share = min(amount, max(part, 0))
        shares.append(share)
        amount -= share
    return shares


def draw(costs: Sequence[int], holds: Sequence[OpenHold]) -> Draws:
    """Draw each cost whole from the holds, which are in spending order and shrink as they are drawn.

    A cost that their rest does not cover is drawn not at all: it goes whole into a late transaction.
    """
    plan = Draws()
    for index, cost in enumerate(costs):
        if cost > sum(hold.open for hold in holds):
            plan.uncovered.append(index)
            continue
        for hold, share in zip(holds, spread(cost, [hold.open for hold in holds]), strict=True):
            if share:
                hold.open -= share
                plan.by_hold[hold.hold_id] = plan.by_hold.get(hold.hold_id, 0) + share
    return plan


def pay_late(total: int, accounts: Sequence[Available], overrun_id: int) -> dict[int, int]:
    """Account → what it pays of a cost that no hold covers: available money first, the rest is overrun."""
    shares = spread(total, [account.amount for account in accounts])
    paid = {account.account_id: share for account, share in zip(accounts, shares, strict=True) if share}
    rest = total - sum(shares)
    return paid | {overrun_id: rest} if rest else paid
