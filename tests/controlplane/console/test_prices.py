"""Prices as people see them: hours of the clock, tiers, packages, time and room, and a tenant's own contract."""

from datetime import UTC, date, datetime, timedelta

import pytest
from django.conf import settings

from billing.services import sheet_publish
from controlplane.console import words
from controlplane.console.tariffs import tariff
from inference.models import Endpoint, Pool
from kernel.clock import month_of, utcnow
from kernel.ids import new_id
from kernel.money import PICO
from kernel.pricing import (
    ACCEL_SECOND,
    HOLIDAY,
    IN_HIT,
    IN_MISS,
    KTPM_DAY,
    METERS,
    OUT,
    ClockWindow,
    Package,
    Rate,
    Sheet,
    Tier,
)
from tests.controlplane.console.markup import Markup
from tests.controlplane.console.purse import DEDICATED, FREE, RESERVED, SHARED, give

WORKDAYS = frozenset(range(1, 6))
PRICES = {IN_HIT: Rate(7_000), IN_MISS: Rate(220_000), OUT: Rate(660_000)}
TWICE = {meter: Rate(2 * price.num_pico) for meter, price in PRICES.items()}
MORNING, AFTERNOON = (
    ClockWindow(WORKDAYS, start * 60, end * 60, TWICE) for start, end in ((9, 12), (14, 18))
)  # as DeepSeek bills
BY_THE_CLOCK = Sheet(
    SHARED,
    "local",
    "USD",
    datetime(2026, 1, 1, tzinfo=UTC),
    PRICES,
    windows=(MORNING, AFTERNOON),
    utc_offset_min=480,
    holidays=frozenset({date(2026, 10, 1)}),
    tiers=(Tier(1_000 * PICO, 50), Tier(10_000 * PICO, 125)),
    packages=(Package("starter", 50_000_000, 20 * PICO, 90),),
)
MORNING_IN_BEIJING = datetime(2026, 11, 24, 2, tzinfo=UTC)


def test_windows_of_one_price_are_one_column_in_their_own_time_zone():
    found = tariff(BY_THE_CLOCK, MORNING_IN_BEIJING)
    usual, peak = found.hours
    assert (usual.name, usual.spans, usual.is_now) == ("Off-peak", (), False)
    assert (peak.name, peak.spans, peak.is_now) == ("Peak", ("Mon–Fri 09:00–12:00, 14:00–18:00",), True)
    assert found.zone == "UTC+08:00"
    assert found.rows[-1].amounts == (660_000_000_000, 1_320_000_000_000)


def test_on_a_holiday_the_weekdays_prices_do_not_hold():
    usual, peak = tariff(BY_THE_CLOCK, datetime(2026, 10, 1, 2, tzinfo=UTC)).hours
    assert (usual.is_now, peak.is_now) == (True, False)


def test_a_cheaper_window_is_off_peak_and_what_lies_outside_is_standard():
    half = {meter: Rate(price.num_pico // 2) for meter, price in PRICES.items()}
    night = ClockWindow(frozenset({HOLIDAY, 6, 7}), 0, 24 * 60, half)
    found = tariff(Sheet(SHARED, "local", "USD", utcnow(), PRICES, windows=(night,)), utcnow())
    assert [hours.name for hours in found.hours] == ["Standard", "Off-peak"]
    assert found.hours[1].spans == ("Sat, Sun, holidays 00:00–24:00",)
    assert found.zone == "UTC"


def test_accelerator_time_is_priced_by_the_hour_and_the_second_and_its_tokens_are_said_to_be_free():
    sheet = Sheet(DEDICATED, "local", "USD", utcnow(), {ACCEL_SECOND: Rate(2 * PICO, 3600), **FREE})
    found = tariff(sheet, utcnow())
    assert [(row.unit, row.amounts) for row in found.rows] == [("an hour", (2 * PICO,)), ("a second", (555_555_556,))]
    assert found.tokens_free


def test_a_reservation_is_priced_by_the_thousand_tokens_a_minute_and_the_day():
    found = tariff(Sheet(RESERVED, "local", "USD", utcnow(), {KTPM_DAY: Rate(PICO), **FREE}), utcnow())
    assert [(row.unit, row.amounts) for row in found.rows] == [("1,000 tokens a minute, for a UTC day", (PICO,))]


def test_the_price_page_and_the_release_page_show_everything_that_is_on_sale(person, prices):
    for path in ("/prices", "/catalogue/tiny-deepseek"):
        page = person.get(path).content.decode()
        assert Markup(page).faults == []
        for shown in ("0.007", "an hour", "Tokens cost nothing on top."):
            assert shown in page, (path, shown)
        assert "Your contract" not in page


@pytest.fixture
def elsewhere(pool, prices):
    """A second region with a pool that holds the test model, and with a price for its time there."""
    columns = Pool.objects.filter(id=pool.id).values().get()
    other = Pool.objects.create(**columns | {"id": new_id(), "region": "elsewhere", "cluster": "elsewhere"})
    start = month_of(utcnow())[0] - timedelta(days=31)
    sheet_publish(
        sheet=Sheet(DEDICATED, other.region, "USD", start, {ACCEL_SECOND: Rate(PICO, 3600), **FREE}), actor="test"
    )
    yield other.region
    Pool.objects.filter(id=other.id).update(cluster="", releases=[])


def test_what_another_region_has_is_priced_quoted_and_deployed_there(person, elsewhere):
    page = person.get("/prices").content.decode()
    assert Markup(page).faults == []
    for region in (settings.REGION, elsewhere):
        assert f'What this tenant pays in region <bdi dir="ltr">{region}</bdi>' in page
    form = person.get("/endpoints/new").content.decode()
    assert Markup(form).faults == []
    assert f'<option value="{elsewhere}">' in form
    give(person, 20 * PICO)
    quote = person.get(f"/endpoints/quote?release=tiny-deepseek&region={elsewhere}&replicas=1").content.decode()
    assert 'title="24 USD"' in quote
    wanted = {"release": "tiny-deepseek", "rung": "dedicated", "replicas": "1", "name": "afar", "region": elsewhere}
    assert person.post("/endpoints/new", wanted).status_code == 302
    made = Endpoint.objects.get(tenant=person.tenant)
    assert (made.region, made.deployments.get().pool.region) == (elsewhere, elsewhere)


def test_a_tenant_sees_its_contract_with_its_hours_tiers_and_packages_and_the_list_price_beside(newcomer, prices):
    owner, other = newcomer(), newcomer()
    contract = Sheet(
        SHARED,
        settings.REGION,
        "USD",
        utcnow() - timedelta(hours=1),
        PRICES,
        tenant_id=str(owner.tenant.id),
        windows=BY_THE_CLOCK.windows,
        utc_offset_min=480,
        holidays=BY_THE_CLOCK.holidays,
        tiers=BY_THE_CLOCK.tiers,
        packages=BY_THE_CLOCK.packages,
    )
    sheet_publish(sheet=contract, actor="test")
    page = owner.get("/catalogue/tiny-deepseek").content.decode()
    assert Markup(page).faults == []
    for shown in ("Your contract", "List price", "Mon–Fri 09:00–12:00", "UTC+08:00", "12.5 %", "starter", "50,000,000"):
        assert shown in page, shown
    assert "Your contract" not in other.get("/catalogue/tiny-deepseek").content.decode()


def test_a_release_that_the_catalogue_lacks_is_a_missing_page(person):
    assert person.get("/catalogue/nothing").status_code == 404


def test_every_meter_that_a_bill_may_name_has_a_word():
    assert words.METERS.keys() == METERS.keys()
