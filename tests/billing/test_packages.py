"""Token packages: bought once from what is available, and given back on exactly the tokens that they hold."""

from datetime import UTC, datetime, timedelta

import pytest
import redis

from billing import months
from billing.core.packages import Bought, Used, cover
from billing.corrections import usage_correct
from billing.ingest import events_ingest
from billing.models import Invoice, InvoiceLine
from billing.packages import package_buy
from billing.services import sheet_publish
from kernel import wire
from kernel.ids import derived_id
from kernel.pricing import OUT, Package, Rate, Sheet
from kernel.problems import Problem
from kernel.usage import UsageEvent
from tests.billing.harbour import LONG_AGO, REGION, UNIT, Harbour, harbour
from tests.billing.test_lender import want
from tests.billing.test_scoped import give, left
from tests.services import wait_until

# A month that nothing else in the suite writes to.
START = datetime(2032, 9, 10, tzinfo=UTC)


def world(*, money: int = 10 * UNIT) -> Harbour:
    """A million tokens cost 0.42, and in a package of a million 0.20."""
    berth = harbour(money=money)
    offer = Package("million", 1_000_000, UNIT // 5, 30)
    berth.sheet = Sheet(f"{berth.sku}-packed", REGION, "USD", LONG_AGO, {OUT: Rate(420_000)}, packages=(offer,))
    berth.sku = berth.sheet.sku
    sheet_publish(sheet=berth.sheet, actor="t")
    return berth


def buy(berth: Harbour, key: str = "first", name: str = "million") -> object:
    return package_buy(
        tenant_id=berth.tenant_id, sku=berth.sku, region=REGION, name=name, idem_key=key, actor="ann", now=START
    ).id


def test_a_package_is_bought_with_money_that_is_lent_out_the_models_credit_first(
    database: None, gateway_redis: "redis.Redis", lender_at_work: None
) -> None:
    berth = world(money=UNIT // 5)
    credit = give(berth, berth.sku.split(":")[0], amount=UNIT // 10)
    gateway_redis.rpush(wire.WANT, wire.dumps(want(berth, UNIT // 5)[0]))
    wait_until(lambda: berth.held() == {"promo": UNIT // 10, "prepaid": UNIT // 5}, "lending")
    buy(berth)
    assert left(credit) == 0
    assert berth.posted() == {"prepaid": UNIT // 10, "revenue": UNIT // 5}


def use(berth: Harbour, hours: float, out: int) -> UsageEvent:
    at = START + timedelta(hours=hours)
    event = berth.event(event_id=derived_id(at, str(berth.tenant_id)), started_at=at, ended_at=at, counts={OUT: out})
    assert events_ingest([berth.record(event)], now=at).booked == 1
    return event


def test_use_is_paid_as_quoted_and_a_package_gives_back_what_its_tokens_cost(database: None) -> None:
    berth = world()
    assert buy(berth) == buy(berth)
    assert berth.posted() == {"prepaid": 98 * UNIT // 10, "revenue": UNIT // 5}
    berth.hold(UNIT)
    use(berth, -1, 100_000)  # before it was bought: 0.042, paid
    first = use(berth, 1, 600_000)
    use(berth, 2, 600_000)  # of which the package has 400,000: 200,000 are paid, 0.084
    for _ in range(2):
        months.packages_use(now=START + timedelta(hours=3))
        assert berth.posted()["revenue"] == (200 + 42 + 84) * UNIT // 1000
    # 200,000 tokens taken back make room for the 200,000 that were paid.
    usage_correct(event_id=first.event_id, counts={OUT: -200_000}, actor="ann", reason="garbled")
    months.packages_use(now=START + timedelta(hours=4))
    assert berth.posted()["revenue"] == (200 + 42) * UNIT // 1000
    months.month_close(now=datetime(2032, 10, 4, tzinfo=UTC))
    (invoice,) = Invoice.objects.filter(tenant_id=berth.tenant_id)
    lines = {line.meter: int(line.amount_pico) for line in InvoiceLine.objects.filter(invoice=invoice)}
    assert lines == {"out": 462 * UNIT // 1000, "package": UNIT // 5, "rebate": -42 * UNIT // 100}
    assert (invoice.status, invoice.total_minor) == ("issued", 24)


def test_a_package_needs_an_offer_and_the_money(database: None) -> None:
    poor = world(money=UNIT // 10)
    with pytest.raises(Problem, match=r"0\.1 USD are missing"):
        buy(poor)
    with pytest.raises(Problem, match="has no package"):
        buy(poor, name="billion")
    assert poor.posted() == {"prepaid": UNIT // 10}
    assert poor.held() == {}


def test_a_use_takes_from_the_package_that_ends_soonest_and_only_while_it_lasts() -> None:
    day = timedelta(days=1)
    bought = [Bought(START, START + 30 * day, 100), Bought(START, START + 2 * day, 50)]
    used = [Used(START, 30, 1), Used(START + day, 40, 10), Used(START + 3 * day, 200, 100)]
    # 30 and 20 of the short one, 20 of the long one, then the 80 that it has left.
    assert cover(used, bought, start=START + day) == 40 * 10 + 80 * 100
