"""Dedicated time that nobody pays: fifteen minutes of grace, then the tenant stands suspended until it pays in."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from billing import services, spans
from billing.models import LedgerAccount, Shortfall
from kernel.clock import utcnow
from kernel.pricing import Sheet
from tenants.models import ApiKey, AuditLog, Standing, Tenant
from tenants.services import api_key_create, standing_set
from tests.billing.harbour import Harbour, dedicated, harbour
from tests.billing.test_reserved import DAY_PRICE
from tests.billing.test_reserved import at as reserved_at
from tests.billing.test_reserved import fact as reserved_fact
from tests.billing.test_reserved import place as reserved_place
from tests.billing.test_reserved import rate as reserved_rate
from tests.billing.test_reserved import sell as reserved_sell
from tests.billing.test_spans import clock, fact, open_of, place, rate

HOUR = 3600


@dataclass
class Berth:
    """A deployment that runs at one pico-unit a second."""

    harbour: Harbour
    sheet: Sheet
    deployment: UUID
    pod: UUID

    def alive(self, at: datetime) -> None:
        fact(self.harbour, self.sheet, "alive", at, pod=self.pod, deployment=self.deployment)
        rate(at)

    def ends(self, at: datetime) -> None:
        """What the reconciler does with a suspended tenant: the pod ends, the hold is closed."""
        fact(self.harbour, self.sheet, "to", at, pod=self.pod, deployment=self.deployment)
        services.hold_close(deployment_id=self.deployment)
        rate(at)

    def pays(self, pico: int) -> None:
        services.topup(
            tenant_id=self.harbour.tenant_id, currency="USD", amount_pico=pico, idem_key=str(uuid4()), actor="t"
        )

    def is_given(self, pico: int) -> UUID:
        return services.promo_grant(
            tenant_id=self.harbour.tenant_id, currency="USD", amount_pico=pico, idem_key=str(uuid4()), actor="t"
        )

    @property
    def standing(self) -> str:
        return Tenant.objects.get(id=self.harbour.tenant_id).standing


def running(*, money: int) -> Berth:
    """Serving since noon, with an hour's money held."""
    berth = Berth(harbour(money=money), Sheet("", "", "", clock("12:00"), {}), uuid4(), uuid4())
    berth.sheet = dedicated(berth.harbour, HOUR)
    place(berth.harbour, berth.sheet, berth.deployment)
    fact(berth.harbour, berth.sheet, "from", clock("12:00"), pod=berth.pod, deployment=berth.deployment)
    return berth


def test_time_that_cannot_be_paid_suspends_after_fifteen_minutes_and_a_deposit_that_covers_it_brings_back(
    database: None,
) -> None:
    berth = running(money=HOUR + 1000)
    key, _ = api_key_create(tenant_id=berth.harbour.tenant_id, name="k", actor="t")
    berth.alive(clock("12:50"))
    short = Shortfall.objects.get(tenant_id=berth.harbour.tenant_id)
    assert (short.missing_pico, short.since_at) == (HOUR - 1000, clock("12:50"))
    berth.alive(clock("13:05"))
    assert berth.standing == Standing.ACTIVE
    berth.alive(clock("13:05:01"))
    assert berth.standing == Standing.SUSPENDED
    # The gateways' copy of a key counts no more, so every next request asks for the standing.
    assert ApiKey.objects.get(id=key.id).version == key.version + 1
    berth.ends(clock("13:06"))
    # The hour that was held is paid; of six minutes 1,000 seconds' money is enough.
    assert berth.harbour.posted() == {"prepaid": 640, "revenue": HOUR + 360}
    berth.pays(short.missing_pico - 1)
    rate(utcnow())
    assert berth.standing == Standing.SUSPENDED
    # What we give is not what was paid in, and a promise that is taken back takes nothing of what was.
    given = berth.is_given(10 * short.missing_pico)
    rate(utcnow())
    assert berth.standing == Standing.SUSPENDED
    services.topup_reverse(tx_id=given, actor="t")
    berth.pays(1)
    rate(utcnow())
    assert berth.standing == Standing.ACTIVE
    assert not Shortfall.objects.filter(tenant_id=berth.harbour.tenant_id).exists()
    said = AuditLog.objects.filter(tenant_id=berth.harbour.tenant_id, actor="billing").order_by("seq")
    assert [row.action for row in said] == ["tenant.suspended", "tenant.active"]


def test_money_that_comes_in_time_suspends_nobody(database: None) -> None:
    berth = running(money=HOUR)
    berth.alive(clock("12:50"))
    berth.pays(HOUR)
    berth.alive(clock("13:04"))
    assert open_of(berth.deployment) == HOUR
    assert not Shortfall.objects.filter(tenant_id=berth.harbour.tenant_id).exists()
    berth.alive(clock("13:40"))
    assert berth.standing == Standing.ACTIVE
    berth.ends(clock("13:41"))


def test_a_grace_is_not_worn_off_by_an_earlier_shortfall(database: None) -> None:
    berth = running(money=HOUR)
    berth.alive(clock("12:50"))
    berth.pays(HOUR)
    berth.alive(clock("12:51"))
    berth.alive(clock("13:50"))
    berth.alive(clock("14:04"))
    assert berth.standing == Standing.ACTIVE
    berth.alive(clock("14:06"))
    assert berth.standing == Standing.SUSPENDED
    berth.ends(clock("14:07"))


def test_what_is_paused_or_deleted_in_its_grace_suspends_nobody(database: None) -> None:
    berth = running(money=HOUR)
    berth.alive(clock("12:50"))
    berth.ends(clock("12:55"))
    spans.slices_rate(now=clock("13:30"))
    assert berth.standing == Standing.ACTIVE
    assert not Shortfall.objects.filter(tenant_id=berth.harbour.tenant_id).exists()


def test_a_postpaid_tenant_runs_down_to_its_limit_and_never_below(database: None) -> None:
    berth = Berth(harbour(money=0), Sheet("", "", "", clock("12:00"), {}), uuid4(), uuid4())
    services.accounts_open(tenant_id=berth.harbour.tenant_id, currency="USD", credit_limit_pico=2 * HOUR)
    berth.sheet = dedicated(berth.harbour, HOUR)
    place(berth.harbour, berth.sheet, berth.deployment)
    fact(berth.harbour, berth.sheet, "from", clock("12:00"), pod=berth.pod, deployment=berth.deployment)
    for at in ("12:50", "13:50", "14:05:01"):
        berth.alive(clock(at))
    assert berth.standing == Standing.SUSPENDED
    account = LedgerAccount.objects.get(tenant_id=berth.harbour.tenant_id, kind="receivable")
    assert (account.posted, account.held, account.available) == (-2 * HOUR, 0, 0)
    berth.ends(clock("14:06"))
    assert berth.harbour.posted() == {"receivable": -2 * HOUR, "overrun": -360, "revenue": 2 * HOUR + 360}


def test_an_operators_word_goes_before_ours(database: None) -> None:
    berth = running(money=HOUR)
    standing_set(tenant_id=berth.harbour.tenant_id, standing=Standing.SUSPENDED, actor="ann")
    berth.pays(5 * HOUR)
    spans.slices_rate(now=clock("12:10"))
    assert berth.standing == Standing.SUSPENDED
    standing_set(tenant_id=berth.harbour.tenant_id, standing=Standing.ACTIVE, actor="ann")
    berth.ends(clock("12:11"))
    other = running(money=HOUR)
    other.alive(clock("12:50"))
    other.alive(clock("13:06"))
    assert other.standing == Standing.SUSPENDED
    standing_set(tenant_id=other.harbour.tenant_id, standing=Standing.ACTIVE, actor="ann")
    for at in ("13:07", "13:08", "13:23"):
        other.alive(clock(at))
        assert other.standing == Standing.ACTIVE
    other.alive(clock("13:24"))
    assert other.standing == Standing.SUSPENDED
    other.ends(clock("13:24"))


def test_a_reserved_day_that_is_not_paid_suspends_too_and_a_late_deposit_counts(database: None) -> None:
    berth, endpoint = harbour(money=DAY_PRICE * 10), uuid4()
    sheet = reserved_sell(berth)
    reserved_place(berth, sheet, endpoint)
    reserved_fact(berth, sheet, endpoint, "from", "04 15:00")
    for when in ("04 15:00", "04 23:50", "05 00:00"):
        reserved_rate(when)
        spans.slices_rate(now=reserved_at(when))
    assert Shortfall.objects.get(tenant_id=berth.tenant_id).missing_pico == DAY_PRICE * 10
    assert berth.posted()["overrun"] == -10 * DAY_PRICE
    pay = {"tenant_id": berth.tenant_id, "currency": "USD", "amount_pico": 10 * DAY_PRICE, "actor": "t"}
    services.topup(**pay, idem_key="late")
    spans.slices_rate(now=reserved_at("05 00:06"))
    assert Tenant.objects.get(id=berth.tenant_id).standing == Standing.ACTIVE
    for when in ("05 23:50", "06 00:05"):
        reserved_rate(when)
        spans.slices_rate(now=reserved_at(when))
    spans.slices_rate(now=reserved_at("06 00:06"))
    assert Tenant.objects.get(id=berth.tenant_id).standing == Standing.SUSPENDED
    services.topup(**pay, idem_key="later")
    spans.slices_rate(now=reserved_at("06 00:07"))
    assert Tenant.objects.get(id=berth.tenant_id).standing == Standing.ACTIVE
    reserved_fact(berth, sheet, endpoint, "to", "06 00:08")
    reserved_rate("07 00:00")
