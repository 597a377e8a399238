"""Reserved kTPM: a day begun is billed whole, the highest reservation of a day counts, no day is skipped."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from billing import holds, reserved, services
from billing.models import Hold, Quarantine, RatedLine, ReservedSpan
from kernel.clock import utcnow
from kernel.pricing import KTPM_DAY, Rate, Sheet
from kernel.problems import Problem
from tenants import outbox
from tests.billing.harbour import FREE_TOKENS, LONG_AGO, POOL, REGION, UNIT, Harbour, harbour

DAY_PRICE = 2 * UNIT // 10


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2031-03-{text}").replace(tzinfo=UTC)


def sell(berth: Harbour, pico: int = DAY_PRICE, *, effective_from: datetime = LONG_AGO) -> Sheet:
    sku = berth.sku.replace(":shared", ":reserved")
    sheet = Sheet(sku, REGION, "USD", effective_from, {KTPM_DAY: Rate(pico), **FREE_TOKENS})
    services.sheet_publish(sheet=sheet, actor="t")
    return sheet


def fact(berth: Harbour, sheet: Sheet, endpoint: UUID, event: str, when: str, *, ktpm: int = 10) -> None:
    outbox.publish(
        topic=reserved.TOPIC,
        dedupe_key=f"reserved:{endpoint}:{event}:{when}:{uuid4()}",
        payload={
            "endpoint_id": str(endpoint),
            "tenant_id": str(berth.tenant_id),
            "sku": sheet.sku,
            "region": REGION,
            "pool": POOL,
            "ktpm": ktpm,
            "event": event,
            "at": at(when).isoformat(),
        },
    )


def rate(now: str) -> int:
    while reserved.facts_take():
        pass
    return reserved.days_rate(now=at(now))


def booked(endpoint: UUID) -> list[tuple[str, str, int, int]]:
    lines = RatedLine.objects.filter(event__subject_id=endpoint).select_related("event")
    return [
        (f"{line.event.started_at:%d %H:%M}", f"{line.event.ended_at:%d %H:%M}", line.quantity, line.amount)
        for line in lines.order_by("event__started_at")
    ]


def open_of(endpoint: UUID) -> int:
    return sum(hold.open for hold in Hold.objects.filter(subject=f"deployment:{endpoint}"))


def place(berth: Harbour, sheet: Sheet, endpoint: UUID, ktpm: int = 10) -> None:
    services.reserved_hold_place(
        tenant_id=berth.tenant_id, endpoint_id=endpoint, sku=sheet.sku, region=REGION, pool=POOL, ktpm=ktpm
    )


def test_every_day_that_a_reservation_touches_is_billed_whole_and_none_twice(database: None) -> None:
    berth, endpoint = harbour(), uuid4()
    sheet = sell(berth)
    place(berth, sheet, endpoint)
    fact(berth, sheet, endpoint, "from", "04 15:00")
    for _ in range(3):
        rate("04 15:00")
    # 10 kTPM at 0.2 a day: 2.00 at once, from the hold.
    assert booked(endpoint) == [("04 15:00", "05 00:00", 10, 2 * UNIT)]
    assert open_of(endpoint) == 0
    # Three days later: the fifth, sixth and seventh began; the seventh ends at 00:30.
    fact(berth, sheet, endpoint, "to", "07 00:30")
    assert rate("07 09:00") == 3
    assert rate("09 09:00") == 0
    assert [line[:2] for line in booked(endpoint)[1:]] == [
        ("05 00:00", "06 00:00"),
        ("06 00:00", "07 00:00"),
        ("07 00:00", "08 00:00"),
    ]
    assert berth.posted() == {"prepaid": 2 * UNIT, "revenue": 8 * UNIT}
    assert ReservedSpan.objects.get(endpoint_id=endpoint).finished


def test_within_a_day_the_highest_reservation_counts(database: None) -> None:
    berth, endpoint = harbour(), uuid4()
    sheet = sell(berth)
    place(berth, sheet, endpoint, 30)
    for event, when, ktpm in (
        ("from", "04 08:00", 10),
        ("to", "04 10:00", 10),
        ("from", "04 10:00", 30),  # 20 more
        ("to", "04 12:00", 30),
        ("from", "04 13:00", 5),  # fewer: nothing until midnight
        ("to", "05 07:00", 5),
    ):
        fact(berth, sheet, endpoint, event, when, ktpm=ktpm)
    rate("05 08:00")
    assert [(start, quantity) for start, _, quantity, _ in booked(endpoint)] == [
        ("04 08:00", 10),
        ("04 10:00", 20),
        ("05 00:00", 5),
    ]


def test_the_next_days_money_is_set_aside_before_midnight_and_goes_back_with_the_end(database: None) -> None:
    berth, endpoint = harbour(), uuid4()
    sheet = sell(berth)
    place(berth, sheet, endpoint)
    fact(berth, sheet, endpoint, "from", "04 15:00")
    rate("04 23:49")
    assert open_of(endpoint) == 0
    rate("04 23:50")
    assert open_of(endpoint) == 2 * UNIT
    fact(berth, sheet, endpoint, "to", "04 23:55")
    services.hold_close(deployment_id=endpoint)
    rate("04 23:56")
    assert len(booked(endpoint)) == 1
    holds.deployment_holds_return(now=utcnow() + timedelta(hours=2))
    assert open_of(endpoint) == 0
    assert berth.posted() == {"prepaid": 8 * UNIT, "revenue": 2 * UNIT}


def test_a_price_change_holds_from_the_next_midnight_on(database: None) -> None:
    berth, endpoint = harbour(), uuid4()
    sheet = sell(berth)
    sell(berth, 2 * DAY_PRICE, effective_from=at("05 06:00"))
    fact(berth, sheet, endpoint, "from", "05 05:00")
    rate("06 00:00")
    assert [amount for *_, amount in booked(endpoint)] == [10 * DAY_PRICE, 20 * DAY_PRICE]


def test_without_a_price_a_day_waits_and_is_booked_once_there_is_one(database: None) -> None:
    berth, endpoint = harbour(), uuid4()
    unsold = Sheet(berth.sku.replace(":shared", ":reserved"), REGION, "USD", LONG_AGO, {})
    with pytest.raises(Problem, match="has no price"):
        place(berth, unsold, endpoint)
    fact(berth, unsold, endpoint, "from", "04 15:00")
    assert rate("06 15:00") == 0
    sell(berth)
    assert rate("06 15:00") == 3


def test_money_that_is_short_leaves_the_books_whole(database: None) -> None:
    berth, endpoint = harbour(money=3 * UNIT), uuid4()
    sheet = sell(berth)
    with pytest.raises(Problem, match="must be available"):
        place(berth, sheet, endpoint, 100)
    place(berth, sheet, endpoint)
    fact(berth, sheet, endpoint, "from", "04 15:00")
    rate("05 00:00")
    # 2.00 from the hold; of the next day's 2.00 one is left, the rest is owed.
    assert berth.posted() == {"revenue": 4 * UNIT, "overrun": -UNIT}


@pytest.mark.parametrize(
    "change", [{"event": "alive"}, {"ktpm": 0}, {"at": "2031-03-04T10:00:00"}, {"event": "to"}, {"endpoint_id": "x"}]
)
def test_a_fact_that_is_none_goes_to_quarantine(database: None, change: dict[str, object]) -> None:
    berth = harbour()
    payload = {
        "endpoint_id": str(uuid4()),
        "tenant_id": str(berth.tenant_id),
        "sku": "x",
        "region": REGION,
        "ktpm": 1,
        "event": "from",
        "at": at("04 10:00").isoformat(),
    }
    before = Quarantine.objects.count()
    outbox.publish(topic=reserved.TOPIC, dedupe_key=f"odd:{uuid4()}", payload=payload | change)
    reserved.facts_take()
    assert Quarantine.objects.count() == before + 1
