"""The pure parts: plans, slices, lending, receipts, drafts, judging."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core import receipts
from billing.core.drafts import DraftLine, LineKey, Rated, gather, share_minor
from billing.core.lending import FLOAT_MAX_PICO, lend_amount, return_amount
from billing.core.posting import Available, OpenHold, draw, pay_late, spread
from billing.core.slices import Slice, cut, hour_of, inner_seconds, slice_id
from kernel.clock import HOUR
from kernel.money import to_minor
from kernel.pricing import canonical

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
amounts = st.integers(0, 10**15)


@given(amounts, st.lists(amounts, max_size=5))
def test_spread_bears_all_that_fits_and_never_more(amount: int, parts: list[int]) -> None:
    shares = spread(amount, parts)
    assert sum(shares) == min(amount, sum(parts))
    assert all(0 <= share <= part for share, part in zip(shares, parts, strict=True))


@given(st.lists(amounts, max_size=6), st.lists(amounts, max_size=4))
def test_draws_and_uncovered_costs_are_everything(costs: list[int], opens: list[int]) -> None:
    holds = [OpenHold(uuid4(), index, amount) for index, amount in enumerate(opens)]
    plan = draw(costs, holds)
    assert sum(plan.by_hold.values()) == sum(costs) - sum(costs[index] for index in plan.uncovered)
    assert sum(hold.open for hold in holds) == sum(opens) - sum(plan.by_hold.values())
    assert all(hold.open >= 0 for hold in holds)


def test_a_late_cost_takes_available_money_before_overrun() -> None:
    accounts = [Available(1, 5), Available(2, -3), Available(3, 4)]
    assert pay_late(8, accounts, 9) == {1: 5, 3: 3}
    assert pay_late(12, accounts, 9) == {1: 5, 3: 4, 9: 3}
    assert pay_late(1, [], 9) == {9: 1}


def test_seconds_are_rounded_in_the_tenants_favour_at_both_ends() -> None:
    start, end = NOON + timedelta(seconds=0.1), NOON + timedelta(seconds=9.9)
    assert inner_seconds(start, end) == (NOON + timedelta(seconds=1), NOON + timedelta(seconds=9))
    assert inner_seconds(NOON, NOON) == (NOON, NOON)


def test_a_running_span_gives_only_complete_slices_and_an_ended_one_its_rest() -> None:
    end = NOON + timedelta(minutes=90)
    running = list(cut(NOON, end, [], ended=False))
    ended = list(cut(NOON, end, [], ended=True))
    assert running == [Slice(NOON, NOON + HOUR)]
    assert ended == [*running, Slice(NOON + HOUR, end)]
    assert list(cut(end, NOON, [], ended=True)) == []


@given(
    st.timedeltas(timedelta(0), timedelta(days=2)).map(lambda offset: NOON + offset),
    st.integers(0, 60 * 60 * 30),
    st.lists(st.integers(0, 60 * 60 * 48), max_size=4),
)
def test_slices_tile_the_span_inside_hours_and_prices(start: datetime, seconds: int, offsets: list[int]) -> None:
    changes = [NOON + timedelta(seconds=offset) for offset in offsets]
    end = start + timedelta(seconds=seconds)
    parts = list(cut(start, end, changes, ended=True))
    first, last = inner_seconds(start, end)
    assert sum(part.seconds for part in parts) == max(0, int((last - first).total_seconds()))
    assert all(a.end == b.start for a, b in pairwise(parts))
    for part in parts:
        assert hour_of(part.start) == hour_of(part.end - timedelta(seconds=1))
        assert not any(part.start < change < part.end for change in changes)


def test_a_slice_has_one_id_for_its_pod_shape_and_start() -> None:
    deployment, pod = uuid4(), uuid4()
    part = Slice(NOON, NOON + HOUR)

    def name(part: Slice = part, accelerator: str = "cpu", count: int = 1) -> object:
        return slice_id(part, deployment_id=deployment, pod_uid=pod, accelerator=accelerator, count=count)

    assert name() == name() == name(Slice(NOON, NOON + timedelta(minutes=1)))
    assert len({name(), name(count=2), name(accelerator="h100"), name(Slice(NOON + HOUR, NOON + 2 * HOUR))}) == 4


@pytest.mark.parametrize(
    ("available", "free", "spend", "wanted", "lent"),
    [
        (100, 0, 0, 30, 30),
        (20, 0, 0, 30, 20),
        (100, 0, 50, 30, 50),
        (100, 60, 50, 30, 50),
        (100, 0, 0, 0, 0),
        (100, 25, 50, 0, 0),
        (100, 24, 50, 0, 50),
        (0, 0, 50, 30, 0),
        (-5, 0, 0, 30, 0),
        (10 * FLOAT_MAX_PICO, FLOAT_MAX_PICO - 1, 0, 30, 1),
        (100, FLOAT_MAX_PICO + 1, 0, 30, 0),
    ],
)
def test_the_lender_gives_what_is_wanted_or_ten_minutes_of_spend(
    available: int, free: int, spend: int, wanted: int, lent: int
) -> None:
    assert lend_amount(available=available, free=free, spend_10_min=spend, wanted=wanted) == lent


def test_only_an_idle_float_comes_back() -> None:
    assert return_amount(free=5, spend_10_min=0, idle=True) == 5
    assert return_amount(free=5, spend_10_min=1, idle=True) == 0
    assert return_amount(free=5, spend_10_min=0, idle=False) == 0
    assert return_amount(free=0, spend_10_min=0, idle=True) == 0


def rfc9162(leaves: list[bytes]) -> bytes:
    """The definition, recursively: split at the largest power of two below the length."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + rfc9162(leaves[:split]) + rfc9162(leaves[split:])).digest()


@pytest.mark.parametrize("count", range(18))
def test_the_root_is_the_one_that_rfc_9162_defines(count: int) -> None:
    hashes = [receipts.leaf_hash(bytes([index])) for index in range(count)]
    assert receipts.root_of(hashes) == rfc9162(hashes)


def test_funding_and_carry_leaves_hold_integers_as_strings() -> None:
    tx = uuid4()
    funding = json.loads(receipts.funding_leaf(tx_id=tx, currency="USD", parts={"promo": 5}))
    assert funding == {"version": 1, "kind": "funding", "tx": str(tx), "currency": "USD", "parts": {"promo": "5"}}
    carry = json.loads(receipts.carry_leaf(period_start=NOON, size=3, root=b"\x01"))
    assert (carry["size"], carry["root"]) == ("3", "01")


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_leaf_has_the_bytes_of_the_one_canonical_encoding(currency: str, kind: str) -> None:
    leaf = receipts.funding_leaf(tx_id=uuid4(), currency=currency, parts={kind: 5, "promo": 6})
    assert leaf == canonical(json.loads(leaf))


def test_rated_lines_gather_by_sku_meter_and_price() -> None:
    first, second = LineKey("a", "out", 1, 1), LineKey("a", "out", 2, 1)
    rated = [Rated(uuid4(), second, 1, 2), Rated(uuid4(), first, 5, 5), Rated(uuid4(), first, 2, 2)]
    assert gather(rated) == {first: DraftLine(first, 7, 7), second: DraftLine(second, 1, 2)}


@given(st.lists(st.integers(-(10**15), 10**15), max_size=8), st.sampled_from(["USD", "JPY"]))
def test_line_shares_sum_to_the_total_rounded_once(amounts: list[int], currency: str) -> None:
    shares = share_minor(amounts, currency)
    unit = 10**10 if currency == "USD" else 10**12
    assert sum(shares) == to_minor(sum(amounts), currency)
    assert all(abs(share * unit - amount) <= unit for share, amount in zip(shares, amounts, strict=True))
