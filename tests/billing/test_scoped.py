"""Scoped credit: it pays first and only for what it names, its rest goes back when it expires."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import redis

from billing import lender, recall, scoped, services
from billing.corrections import usage_correct
from billing.models import Credit, Hold, LedgerAccount, Shortfall
from billing.rebates import rebates_post
from billing.selectors import balance_for, credit_list_for, purses_of
from kernel import wire
from kernel.clock import month_of, utcnow
from kernel.pricing import OUT, Rate, Sheet, Tier
from kernel.problems import Problem
from tenants.models import ApiKey
from tenants.services import api_key_create
from tests.billing.harbour import LONG_AGO, POOL, REGION, UNIT, Harbour, dedicated, harbour
from tests.billing.test_reserved import DAY_PRICE, sell
from tests.billing.test_reserved import fact as reserved_fact
from tests.billing.test_reserved import place as reserved_place
from tests.billing.test_reserved import rate as reserved_rate
from tests.billing.test_spans import clock, fact, rate
from tests.conftest import as_role
from tests.services import wait_until

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


def place(berth: Harbour, sku: str, seconds: int, *, pool: str = POOL, deployment: UUID | None = None) -> UUID:
    """Set aside that much time on a pool; the deployment."""
    deployment = deployment or uuid4()
    services.hold_place(
        tenant_id=berth.tenant_id,
        deployment_id=deployment,
        sku=sku,
        region=REGION,
        pool=pool,
        accelerator_seconds=seconds,
    )
    return deployment


def paying(subject: UUID) -> dict[str, int]:
    """Purse → what is held for a deployment or reserved endpoint."""
    holds = Hold.objects.filter(subject=f"deployment:{subject}", open__gt=0).select_related("account")
    return {hold.account.purse: int(hold.open) for hold in holds}


def test_an_accelerators_credit_pays_for_dedicated_time_before_own_money(
    database: None, gateway_redis: "redis.Redis"
) -> None:
    berth = harbour()
    sheet = dedicated(berth, 36 * UNIT // 10)
    credit = give(berth, "cpu", scope="accelerator", amount=3 * UNIT)
    for _ in range(2):
        lender.lender_pass(gateway_redis, region=REGION)
    # 3.60 an hour: 3.00 of the credit, 0.60 of own money.
    assert paying(place(berth, sheet.sku, 3600)) == {credit.account.purse: 3 * UNIT, "general": 6 * UNIT // 10}
    with pytest.raises(Problem, match=r"0\.8 are missing"):
        place(berth, sheet.sku, 10_200)


def test_a_pools_credit_pays_for_the_time_of_that_pool_alone(database: None, gateway_redis: "redis.Redis") -> None:
    berth = harbour(money=10_000)
    sheet, days = dedicated(berth, 3600), sell(berth)
    credit = give(berth, POOL, scope="pool", amount=1000 + 2 * DAY_PRICE)
    for _ in range(2):
        lender.lender_pass(gateway_redis, region=REGION)
    assert free(gateway_redis, berth, credit) == 0  # requests are not billed by the pool that they run on
    assert wire.purses_for(purses_of(berth.tenant_id, "USD"), berth.sku) == ["general"]
    # Another pool of that very SKU, another region's pool of that name: own money.
    for other in (f"{REGION}/moorings", POOL.replace(REGION, "elsewhere")):
        assert paying(place(berth, sheet.sku, 500, pool=other)) == {"general": 500}
    endpoint = uuid4()
    reserved_place(berth, days, endpoint, ktpm=2)
    assert paying(endpoint) == {credit.account.purse: 2 * DAY_PRICE}
    # A second costs one pico-unit: 1,000 of 1,500 are left in the credit.
    deployment = place(berth, sheet.sku, 1500)
    assert paying(deployment) == {credit.account.purse: 1000, "general": 500}
    pod = uuid4()
    fact(berth, sheet, "from", clock("12:00"), pod=pod, deployment=deployment)
    fact(berth, sheet, "to", clock("12:20"), pod=pod, deployment=deployment)
    rate(clock("12:21"))
    assert left(credit) == 2 * DAY_PRICE
    assert paying(deployment) == {"general": 300}
    reserved_fact(berth, days, endpoint, "from", "04 15:00", ktpm=2)
    reserved_fact(berth, days, endpoint, "to", "04 16:00", ktpm=2)
    reserved_rate("04 16:00")
    assert left(credit) == 0


def test_the_next_hour_is_set_aside_from_the_credit_of_the_pool_that_the_span_names(database: None) -> None:
    berth, pod = harbour(money=0), uuid4()
    sheet = dedicated(berth, 3600)
    credit = give(berth, POOL, scope="pool", amount=7200)
    give(berth, f"{REGION}/moorings", scope="pool", days=1)
    deployment = place(berth, sheet.sku, 3600)
    fact(berth, sheet, "from", clock("12:00"), pod=pod, deployment=deployment)
    fact(berth, sheet, "alive", clock("12:50"), pod=pod, deployment=deployment)
    rate(clock("12:50"))
    assert paying(deployment) == {credit.account.purse: 7200}
    fact(berth, sheet, "to", clock("13:50"), pod=pod, deployment=deployment)
    rate(clock("13:51"))
    assert left(credit) == 7200 - 6600
    assert berth.posted() == {"promo": UNIT, "revenue": 6600}


def test_of_all_scopes_the_soonest_to_expire_pays_first(database: None) -> None:
    berth = harbour(money=100)
    sheet = dedicated(berth, 3600)
    by_days = {
        days: give(berth, value, scope=scope, amount=100, days=days)
        for days, scope, value in (
            (4, "model", release(berth)),
            (2, "accelerator", "cpu"),
            (3, "pool", POOL),
            (1, "pool", POOL),
        )
    }
    order = [by_days[days].account.purse for days in sorted(by_days)]
    for count, seconds in enumerate((100, 150, 50, 100, 50), 1):
        place(berth, sheet.sku, seconds)
        held = LedgerAccount.objects.filter(tenant_id=berth.tenant_id, held__gt=0)
        spent = sum((100, 150, 50, 100, 50)[:count])
        shares = [min(100, max(0, spent - 100 * place)) for place in range(5)]
        assert {row.purse: int(row.held) for row in held} == {
            purse: share for purse, share in zip([*order, "general"], shares, strict=True) if share
        }


def test_a_models_credit_that_is_lent_comes_back_for_dedicated_time_of_that_model(
    database: None, gateway_redis: "redis.Redis", lender_at_work: None
) -> None:
    berth = harbour(money=600)
    sheet = dedicated(berth, 3600)
    ours, other = give(berth, release(berth), amount=3000), give(berth, "another-model", amount=3000)
    wait_until(lambda: free(gateway_redis, berth, ours) == free(gateway_redis, berth, other) == 3000, "lending")
    with as_role("web", tenant_id=berth.tenant_id):
        deployment = place(berth, sheet.sku, 3600)
    assert paying(deployment) == {ours.account.purse: 3000, "general": 600}
    assert free(gateway_redis, berth, ours) == 0
    assert free(gateway_redis, berth, other) == 3000


def test_a_models_credit_comes_back_for_the_next_hour_and_is_not_lent_again_meanwhile(
    database: None, gateway_redis: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "_client", lambda: gateway_redis)
    berth, pod = harbour(money=3600), uuid4()
    sheet = dedicated(berth, 3600)
    deployment = place(berth, sheet.sku, 3600)
    credit = give(berth, release(berth), amount=5000)
    for _ in range(2):
        lender.lender_pass(gateway_redis, region=REGION)
    assert free(gateway_redis, berth, credit) == 5000
    fact(berth, sheet, "from", clock("12:00"), pod=pod, deployment=deployment)
    fact(berth, sheet, "alive", clock("12:50"), pod=pod, deployment=deployment)
    rate(clock("12:50"))
    assert paying(deployment) == {"general": 3600}
    assert Shortfall.objects.get(tenant_id=berth.tenant_id).missing_pico == 3600
    wants = lender.wants_wait(gateway_redis)
    for _ in range(3):
        lender.lender_pass(gateway_redis, region=REGION, wants=wants)
        wants = []
    assert free(gateway_redis, berth, credit) == 1400
    rate(clock("12:51"))
    assert paying(deployment) == {"general": 3600, credit.account.purse: 3600}
    assert not Shortfall.objects.filter(tenant_id=berth.tenant_id).exists()
    fact(berth, sheet, "to", clock("12:51"), pod=pod, deployment=deployment)
    rate(clock("12:52"))


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
        ({"scope": "region"}, "scope is"),
        ({"scope": "pool"}, "a pool's region/name"),
        ({"value": "local/berths"}, "scope is"),
        ({"value": "a:b"}, "scope is"),
        ({"amount_pico": 0}, "above zero"),
        ({"expires_at": utcnow()}, "lies ahead"),
    ):
        with pytest.raises(Problem, match=says):
            scoped.credit_grant(**(arguments | change))  # type: ignore[arg-type]
    assert [credit.value for credit in credit_list_for(berth.tenant_id)] == ["m"]
