"""Scoped credit: it pays first and only for what it names, its rest goes back when it expires."""

from datetime import timedelta
from uuid import uuid4

import pytest
import redis

from billing import lender, scoped, services
from billing.corrections import usage_correct
from billing.models import Credit, LedgerAccount
from billing.rebates import rebates_post
from billing.selectors import balance_for, purses_of
from kernel import wire
from kernel.clock import month_of, utcnow
from kernel.pricing import OUT, Rate, Sheet, Tier
from kernel.problems import Problem
from tenants.models import ApiKey
from tenants.services import api_key_create
from tests.billing.harbour import LONG_AGO, REGION, UNIT, Harbour, dedicated, harbour
from tests.conftest import as_role

COST = 100 * 280_000 + 20 * 420_000


def give(berth: Harbour, value: str, *, amount: int = UNIT, days: float = 30, scope: str = "model") -> Credit:
    return scoped.credit_grant(
        tenant_id=berth.tenant_id,
        currency="USD",
        amount_pico=amount,
        scope=scope,
        value=value,
        expires_at=utcnow() + timedelta(days=days),
        idem_key=str(uuid4()),
        actor="ann",
    )


def release(berth: Harbour) -> str:
    return berth.sku.split(":")[0]


def left(credit: Credit) -> int:
    return int(LedgerAccount.objects.get(id=credit.account_id).posted)


def age(credit: Credit) -> None:
    """The credit's time is over."""
    with as_role("owner"):
        Credit.objects.filter(id=credit.id).update(expires_at=utcnow() - timedelta(seconds=1))


def free(client: "redis.Redis", berth: Harbour, credit: Credit) -> int:
    return int(client.hget(wire.float_key(berth.tenant_id, credit.account.purse, "USD"), "free") or 0)  # type: ignore[arg-type]


def test_a_keys_purses_are_the_soonest_to_expire_first_and_the_general_one_last(database: None) -> None:
    berth = harbour()
    key, _ = api_key_create(tenant_id=berth.tenant_id, name="k", actor="t")
    later = give(berth, release(berth), days=30)
    sooner = give(berth, release(berth), days=3)
    other = give(berth, "another-model", days=1)
    purses = purses_of(berth.tenant_id, "USD")
    assert purses == [other.account.purse, sooner.account.purse, later.account.purse, "general"]
    assert wire.purses_for(purses, berth.sku) == [sooner.account.purse, later.account.purse, "general"]
    assert wire.purses_for(purses, "x:dedicated:h200") == ["general"]
    assert ApiKey.objects.get(id=key.id).version == key.version + 3
    # Nobody sees it as money that pays for everything.
    assert balance_for(berth.tenant_id).available_pico == 10 * UNIT


def test_it_is_lent_whole_drawn_by_its_own_usage_and_given_back_by_a_correction(
    database: None, gateway_redis: "redis.Redis"
) -> None:
    berth = harbour()
    credit = give(berth, release(berth))
    for _ in range(2):
        lender.lender_pass(gateway_redis, region=REGION)
    assert free(gateway_redis, berth, credit) == UNIT
    generation = int(gateway_redis.hget(wire.float_key(berth.tenant_id, credit.account.purse, "USD"), "gen"))  # type: ignore[arg-type]
    event = berth.event(purse=credit.account.purse, generation=generation)
    berth.ingest(event)
    assert left(credit) == UNIT - COST
    assert berth.posted()["prepaid"] == 10 * UNIT
    usage_correct(event_id=event.event_id, counts={"out": -20}, actor="ann", reason="garbled")
    assert left(credit) == UNIT - 28_000_000


def test_a_rebate_that_was_too_much_comes_from_the_credit_that_got_it(
    database: None, gateway_redis: "redis.Redis"
) -> None:
    berth = harbour(money=0)
    sheet = Sheet(f"{berth.sku}-half", REGION, "USD", LONG_AGO, {OUT: Rate(1000)}, tiers=(Tier(0, 500),))
    services.sheet_publish(sheet=sheet, actor="t")
    berth.sheet, berth.sku = sheet, sheet.sku
    credit = give(berth, release(berth))
    lender.lender_pass(gateway_redis, region=REGION)
    generation = int(gateway_redis.hget(wire.float_key(berth.tenant_id, credit.account.purse, "USD"), "gen"))  # type: ignore[arg-type]
    event = berth.event(purse=credit.account.purse, generation=generation, counts={OUT: 100})
    berth.ingest(event)
    month = month_of(event.started_at)
    rebates_post(tenant_id=berth.tenant_id, currency="USD", period=month)
    assert left(credit) == UNIT - 50_000
    usage_correct(event_id=event.event_id, counts={OUT: -40}, actor="ann", reason="garbled")
    rebates_post(tenant_id=berth.tenant_id, currency="USD", period=month)
    assert left(credit) == UNIT - 30_000
    assert "overrun" not in berth.posted()


def test_what_is_left_goes_back_to_its_source_once_it_expires_also_what_is_lent(
    database: None, gateway_redis: "redis.Redis"
) -> None:
    berth = harbour()
    writeoff = LedgerAccount.objects.get(tenant=None, currency="USD", kind="writeoff")
    before = writeoff.posted
    credit = give(berth, release(berth))
    lender.lender_pass(gateway_redis, region=REGION)
    age(credit)
    assert purses_of(berth.tenant_id, "USD") == ["general"]
    assert scoped.credits_expire() == 0  # all of it is lent
    for _ in range(2):
        lender.lender_pass(gateway_redis, region=REGION)
    assert free(gateway_redis, berth, credit) == 0
    assert scoped.credits_expire() == 1
    assert scoped.credits_expire() == 0
    writeoff.refresh_from_db()
    assert (left(credit), writeoff.posted) == (0, before)
    lender.lender_pass(gateway_redis, region=REGION)
    assert free(gateway_redis, berth, credit) == 0


def test_an_accelerators_credit_pays_for_dedicated_time_before_own_money(
    database: None, gateway_redis: "redis.Redis"
) -> None:
    berth = harbour()
    sheet = dedicated(berth, 36 * UNIT // 10)
    credit = give(berth, "cpu", scope="accelerator", amount=3 * UNIT)
    for _ in range(2):
        lender.lender_pass(gateway_redis, region=REGION)
    deployment = uuid4()
    # 3.60 an hour: 3.00 of the credit, 0.60 of own money.
    services.hold_place(
        tenant_id=berth.tenant_id, deployment_id=deployment, sku=sheet.sku, region=REGION, accelerator_seconds=3600
    )
    held = LedgerAccount.objects.filter(tenant_id=berth.tenant_id, held__gt=0).order_by("held")
    assert [(row.purse, row.held) for row in held] == [
        ("general", 6 * UNIT // 10),
        (credit.account.purse, 3 * UNIT),
    ]
    with pytest.raises(Problem, match=r"0\.8 are missing"):
        services.hold_place(
            tenant_id=berth.tenant_id, deployment_id=uuid4(), sku=sheet.sku, region=REGION, accelerator_seconds=10_200
        )


def test_a_grant_is_made_once_and_says_what_it_lacks(database: None) -> None:
    berth = harbour()
    arguments = {
        "tenant_id": berth.tenant_id,
        "currency": "USD",
        "amount_pico": UNIT,
        "scope": "model",
        "value": "m",
        "expires_at": utcnow() + timedelta(days=1),
        "idem_key": "spring",
        "actor": "ann",
    }
    assert scoped.credit_grant(**arguments).id == scoped.credit_grant(**arguments).id  # type: ignore[arg-type]
    for change, says in (
        ({"value": "n"}, "another credit"),
        ({"scope": "pool"}, "scope is"),
        ({"value": "a:b"}, "scope is"),
        ({"amount_pico": 0}, "above zero"),
        ({"expires_at": utcnow()}, "lies ahead"),
    ):
        with pytest.raises(Problem, match=says):
            scoped.credit_grant(**(arguments | change))  # type: ignore[arg-type]
    assert [credit.value for credit in scoped.credit_list_for(berth.tenant_id)] == ["m"]
