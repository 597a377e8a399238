"""Dedicated time: figures derived by hand, slices that never overlap, are never skipped, never repeated."""

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import rating, selectors, services, spans
from billing.ledger import ALARM
from billing.models import BillableSpan, Hold, LedgerTx, Quarantine, RatedLine, UsageEvent
from kernel.clock import utcnow
from kernel.pricing import ACCEL_SECOND, Rate, Sheet
from kernel.problems import Problem
from tenants import outbox
from tenants.models import Outbox
from tests.billing.harbour import POOL, REGION, UNIT, Harbour, dedicated, harbour
from tests.conftest import as_role

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)


def clock(text: str, *, day: int = 0) -> datetime:
    hour, minute, second = (*text.split(":"), "0")[:3]
    return NOON.replace(hour=int(hour), minute=int(minute), second=0) + timedelta(days=day, seconds=float(second))


def fact(
    berth: Harbour,
    sheet: Sheet,
    event: str,
    at: datetime,
    *,
    pod: UUID,
    deployment: UUID,
    count: int = 1,
    since: datetime | None = None,
) -> None:
    """A fact of inference; `since` is the start of its span, by default the pod's latest "from" so far."""
    if since is None:
        begun = Outbox.objects.filter(topic=spans.TOPIC, payload__pod_uid=str(pod), payload__event="from")
        last = begun.order_by("-id").first() if event != "from" else None
        since = datetime.fromisoformat(last.payload["at"]) if last else at
    outbox.publish(
        topic=spans.TOPIC,
        dedupe_key=f"billable:{pod}:{since.isoformat()}:{event}:{at.isoformat()}",
        payload=payload(berth, sheet, event, at, pod=pod, deployment=deployment, count=count, since=since),
    )


def payload(
    berth: Harbour,
    sheet: Sheet,
    event: str,
    at: datetime,
    *,
    pod: UUID,
    deployment: UUID,
    since: datetime,
    count: int = 1,
) -> dict[str, Any]:
    return {
        "deployment_id": str(deployment),
        "endpoint_id": str(uuid4()),
        "tenant_id": str(berth.tenant_id),
        "pod_uid": str(pod),
        "sku": sheet.sku,
        "region": REGION,
        "pool": POOL,
        "accelerator": "cpu",
        "accelerator_count": count,
        "event": event,
        "from_at": since.isoformat(),
        "at": at.isoformat(),
    }


def rate(now: datetime) -> None:
    while spans.facts_take():
        pass
    spans.slices_rate(now=now)


def booked(deployment: UUID) -> list[tuple[str, str, int, int]]:
    lines = RatedLine.objects.filter(event__subject_id=deployment).select_related("event")
    return [
        (f"{line.event.started_at:%H:%M:%S}", f"{line.event.ended_at:%H:%M:%S}", line.quantity, line.amount)
        for line in lines.order_by("event__started_at", "event__pod_uid")
    ]


def place(berth: Harbour, sheet: Sheet, deployment: UUID, seconds: int = 3600) -> None:
    services.hold_place(
        tenant_id=berth.tenant_id,
        deployment_id=deployment,
        sku=sheet.sku,
        region=REGION,
        pool=POOL,
        accelerator_seconds=seconds,
    )


def open_of(deployment: UUID) -> int:
    return sum(hold.open for hold in Hold.objects.filter(subject=f"deployment:{deployment}"))


def test_a_pod_over_an_hours_border_is_two_slices_to_the_pico(database: None) -> None:
    berth, deployment, pod = harbour(), uuid4(), uuid4()
    # One accelerator-hour costs 1 pico-unit: 1/3600 pico a second, so everything rounds.
    sheet = dedicated(berth, 1)
    place(berth, sheet, deployment, 7200)
    # From 12:29:59.4, so from 12:30:00: 1,800 s before the border, half a pico, rounds to 0 (ties to even).
    fact(berth, sheet, "from", clock("12:29:59.4"), pod=pod, deployment=deployment)
    fact(berth, sheet, "alive", clock("12:59:59"), pod=pod, deployment=deployment)
    rate(clock("13:00"))
    assert booked(deployment) == []
    fact(berth, sheet, "alive", clock("13:00:00"), pod=pod, deployment=deployment)
    rate(clock("13:00"))
    assert booked(deployment) == [("12:30:00", "13:00:00", 1800, 0)]
    # Until 13:45:00.9, so to 13:45:00: 2,700 s more, 4,500 s or 1.25 pico in all: 1 pico.
    fact(berth, sheet, "to", clock("13:45:00.9"), pod=pod, deployment=deployment)
    for _ in range(3):
        rate(clock("13:46"))
    assert booked(deployment) == [("12:30:00", "13:00:00", 1800, 0), ("13:00:00", "13:45:00", 2700, 1)]
    assert berth.posted() == {"prepaid": 10 * UNIT - 1, "revenue": 1}
    assert BillableSpan.objects.get(pod_uid=pod).finished


def test_two_replicas_in_one_hour_are_two_slices_and_one_cumulative_sum(database: None) -> None:
    berth, deployment = harbour(), uuid4()
    sheet = dedicated(berth, 36 * UNIT // 10)  # 3.60 an hour: 0.001 a second
    place(berth, sheet, deployment, 2 * 3600)
    for pod in (uuid4(), uuid4()):
        fact(berth, sheet, "from", clock("12:10"), pod=pod, deployment=deployment)
        fact(berth, sheet, "to", clock("12:40"), pod=pod, deployment=deployment)
    rate(clock("12:41"))
    one_slice = ("12:10:00", "12:40:00", 1800, 1800 * UNIT // 1000)
    assert booked(deployment) == [one_slice, one_slice]
    assert berth.posted()["revenue"] == 3600 * UNIT // 1000
    assert LedgerTx.objects.filter(tenant_id=berth.tenant_id, kind="usage").count() == 1


def test_a_delete_in_the_first_hour_bills_only_the_seconds_and_four_cards_count_four_times(database: None) -> None:
    berth, deployment, pod = harbour(), uuid4(), uuid4()
    sheet = dedicated(berth, 3600 * 1000)
    place(berth, sheet, deployment, 4 * 3600)
    fact(berth, sheet, "from", clock("12:00"), pod=pod, deployment=deployment, count=4)
    fact(berth, sheet, "to", clock("12:07:30"), pod=pod, deployment=deployment, count=4)
    rate(clock("12:08"))
    assert booked(deployment) == [("12:00:00", "12:07:30", 1800, 1_800_000)]
    assert open_of(deployment) == (4 * 3600 - 1800) * 1000


def test_a_pod_that_ended_before_it_served_and_one_that_never_served_bill_nothing(database: None) -> None:
    berth, deployment = harbour(), uuid4()
    sheet = dedicated(berth, 3600)
    early, never = uuid4(), uuid4()
    fact(berth, sheet, "from", clock("12:30:00.7"), pod=early, deployment=deployment)
    fact(berth, sheet, "to", clock("12:30:00.9"), pod=early, deployment=deployment)
    fact(berth, sheet, "to", clock("12:30"), pod=never, deployment=deployment, since=clock("12:30"))
    rate(clock("14:00"))
    assert booked(deployment) == []
    assert BillableSpan.objects.get(pod_uid=early).finished


LIFE = [
    ("from", "12:10", "12:10"),
    ("alive", "12:10", "12:15"),
    ("to", "12:10", "12:20"),
    ("from", "12:40", "12:40"),
    ("alive", "12:40", "13:35"),
    ("alive", "12:40", "13:40"),
    ("to", "12:40", "13:30"),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.lists(st.sampled_from(LIFE), max_size=12).flatmap(lambda more: st.permutations(LIFE + more)),
    passes=st.sets(st.integers(0, 19)),
)
def test_facts_may_come_repeated_in_any_order_with_passes_between(
    database: None, order: list[tuple[str, str, str]], passes: set[int]
) -> None:
    (berth, sheet), deployment, pod = anybodys(), uuid4(), uuid4()
    for step, (event, since, at) in enumerate(order):
        told = payload(berth, sheet, event, clock(at), pod=pod, deployment=deployment, since=clock(since))
        outbox.publish(topic=spans.TOPIC, dedupe_key=str(uuid4()), payload=told)
        if step in passes:
            rate(clock("12:59"))
    rate(clock("14:00"))
    assert booked(deployment) == [
        ("12:10:00", "12:20:00", 600, 600),
        ("12:40:00", "13:00:00", 1200, 1200),
        ("13:00:00", "13:30:00", 1800, 1800),
    ]


@cache
def anybodys() -> tuple[Harbour, Sheet]:
    """One tenant and price for every example."""
    berth = harbour()
    return berth, dedicated(berth, 3600)


def test_fault_33_an_unready_pod_is_not_billed_until_it_serves_again(database: None) -> None:
    berth, deployment, pod = harbour(), uuid4(), uuid4()
    sheet = dedicated(berth, 3600)
    place(berth, sheet, deployment, 7200)
    for event, at in (("from", "12:10"), ("alive", "12:15"), ("to", "12:17:30.5")):
        fact(berth, sheet, event, clock(at), pod=pod, deployment=deployment)
    rate(clock("12:30"))
    assert booked(deployment) == [("12:10:00", "12:17:30", 450, 450)]
    assert BillableSpan.objects.get(pod_uid=pod).finished
    for event, at in (("from", "12:45:10.2"), ("alive", "13:02"), ("to", "13:04")):
        fact(berth, sheet, event, clock(at), pod=pod, deployment=deployment)
    for _ in range(2):
        rate(clock("13:05"))
    assert booked(deployment)[1:] == [("12:45:11", "13:00:00", 889, 889), ("13:00:00", "13:04:00", 240, 240)]
    assert BillableSpan.objects.filter(pod_uid=pod, finished=True).count() == 2


def test_an_end_before_what_is_billed_raises_the_alarm_and_bills_no_further(database: None) -> None:
    berth, deployment, pod = harbour(), uuid4(), uuid4()
    sheet = dedicated(berth, 3600)
    fact(berth, sheet, "from", clock("12:30"), pod=pod, deployment=deployment)
    fact(berth, sheet, "alive", clock("13:05"), pod=pod, deployment=deployment)
    rate(clock("13:06"))
    fact(berth, sheet, "to", clock("12:50"), pod=pod, deployment=deployment)
    rate(clock("13:07"))
    assert booked(deployment) == [("12:30:00", "13:00:00", 1800, 1800)]
    alarm = Outbox.objects.get(dedupe_key=f"billed-beyond:{pod}:{clock('12:30').isoformat()}")
    assert "correct its last slice" in alarm.payload["sentence"]


def test_no_hour_is_skipped_when_the_job_was_down_for_days(database: None) -> None:
    berth, deployment, pod = harbour(), uuid4(), uuid4()
    sheet = dedicated(berth, 3600)
    fact(berth, sheet, "from", clock("12:30"), pod=pod, deployment=deployment)
    fact(berth, sheet, "alive", clock("12:10", day=2), pod=pod, deployment=deployment)
    rate(clock("12:11", day=2))
    lines = booked(deployment)
    assert len(lines) == 48
    assert sum(line[2] for line in lines) == 47 * 3600 + 1800
    events = UsageEvent.objects.filter(subject_id=deployment).order_by("started_at")
    assert all(a.ended_at == b.started_at for a, b in pairwise(events))


def test_without_a_price_it_stops_there_and_says_so_and_goes_on_once_there_is_one(database: None) -> None:
    berth, deployment, pod = harbour(), uuid4(), uuid4()
    sku = f"{berth.sku}:cpu"
    sheet = Sheet(sku, REGION, "USD", clock("13:00"), {ACCEL_SECOND: Rate(3600, 3600)})
    fact(berth, sheet, "from", clock("12:30"), pod=pod, deployment=deployment)
    fact(berth, sheet, "to", clock("13:30"), pod=pod, deployment=deployment)
    for _ in range(2):
        rate(clock("14:00"))
    assert booked(deployment) == []
    assert Outbox.objects.filter(dedupe_key=f"unrated:pod {pod}:{clock('12:30').isoformat()}").count() == 1
    services.sheet_publish(sheet=Sheet(sku, REGION, "USD", clock("12:00"), sheet.meters), actor="t")
    rate(clock("14:01"))
    assert [line[3] for line in booked(deployment)] == [1800, 1800]


def test_a_price_change_cuts_the_hour_and_each_part_pays_its_own(database: None) -> None:
    berth, deployment, pod = harbour(), uuid4(), uuid4()
    sku = f"{berth.sku}:cpu"
    start = (utcnow() + timedelta(hours=2)).replace(minute=0, second=0, microsecond=0)
    old = Sheet(sku, REGION, "USD", start - timedelta(days=400), {ACCEL_SECOND: Rate(1)})
    new = Sheet(sku, REGION, "USD", start + timedelta(minutes=20), {ACCEL_SECOND: Rate(10)})
    for sheet in (old, new):
        services.sheet_publish(sheet=sheet, actor="t")
    fact(berth, old, "from", start + timedelta(minutes=10), pod=pod, deployment=deployment)
    fact(berth, old, "to", start + timedelta(minutes=40), pod=pod, deployment=deployment)
    rate(start + timedelta(minutes=41))
    assert [line[2:] for line in booked(deployment)] == [(600, 600), (1200, 12_000)]


def test_the_next_hour_is_set_aside_at_minute_50_and_the_rest_comes_back_after_the_close(database: None) -> None:
    berth, deployment, pod = harbour(), uuid4(), uuid4()
    sheet = dedicated(berth, 3600)
    place(berth, sheet, deployment)
    place(berth, sheet, deployment)
    assert open_of(deployment) == 3600
    fact(berth, sheet, "from", clock("12:15"), pod=pod, deployment=deployment)
    fact(berth, sheet, "alive", clock("12:45"), pod=pod, deployment=deployment)
    rate(clock("12:49"))
    assert open_of(deployment) == 3600
    rate(clock("12:50"))
    assert open_of(deployment) == 6300
    services.hold_close(deployment_id=deployment)
    fact(berth, sheet, "to", clock("13:05"), pod=pod, deployment=deployment)
    rate(clock("13:06"))
    assert berth.posted()["revenue"] == 3000
    assert open_of(deployment) == 3300
    spans.slices_rate(now=utcnow() + timedelta(seconds=61))
    assert open_of(deployment) == 0
    assert berth.held() == {}


def test_money_for_the_next_hour_that_is_missing_raises_an_alarm_and_time_goes_on_being_billed(database: None) -> None:
    berth, deployment, pod = harbour(money=4000), uuid4(), uuid4()
    sheet = dedicated(berth, 3600)
    place(berth, sheet, deployment)
    fact(berth, sheet, "from", clock("12:00"), pod=pod, deployment=deployment)
    fact(berth, sheet, "alive", clock("12:50"), pod=pod, deployment=deployment)
    rate(clock("12:50"))
    assert Outbox.objects.filter(dedupe_key__startswith=f"hold-short:{deployment}").exists()
    fact(berth, sheet, "to", clock("13:30"), pod=pod, deployment=deployment)
    rate(clock("13:31"))
    assert berth.posted() == {"revenue": 5400, "overrun": -1400}


def test_a_hold_without_the_money_or_a_price_is_refused_and_places_nothing(database: None) -> None:
    berth, deployment = harbour(money=3599), uuid4()
    sheet = dedicated(berth, 3600)
    with pytest.raises(Problem) as raised:
        place(berth, sheet, deployment)
    assert (raised.value.type.code, raised.value.extra["missing"]) == ("insufficient_balance", "0.000000000001")
    with pytest.raises(Problem, match="unrated"):
        place(berth, Sheet("none:dedicated:cpu", REGION, "USD", NOON, {}), deployment)
    tokens_forgotten = Sheet(f"{uuid4()}:dedicated:cpu", REGION, "USD", NOON, {ACCEL_SECOND: Rate(1)})
    services.sheet_publish(sheet=tokens_forgotten, actor="t")
    with pytest.raises(Problem, match="no price for in_hit, in_miss, out in USD"):
        place(berth, tokens_forgotten, deployment)
    assert berth.held() == {}


def test_the_web_role_sets_money_aside_for_its_own_tenant(database: None) -> None:
    berth, deployment = harbour(), uuid4()
    sheet = dedicated(berth, 3600)
    with as_role("web", tenant_id=berth.tenant_id):
        place(berth, sheet, deployment)
    assert open_of(deployment) == 3600


def test_a_resumed_deployment_gets_a_hold_of_its_own_generation(database: None) -> None:
    berth, deployment = harbour(), uuid4()
    sheet = dedicated(berth, 3600)
    place(berth, sheet, deployment)
    services.hold_close(deployment_id=deployment)
    place(berth, sheet, deployment)
    generations = Hold.objects.filter(subject=f"deployment:{deployment}").values_list("generation", flat=True)
    assert sorted(generations) == [1, 2]


def test_running_time_that_is_not_booked_yet_shows_as_accruing(database: None) -> None:
    berth, deployment, pod = harbour(), uuid4(), uuid4()
    sheet = dedicated(berth, 3600)
    start = utcnow() - timedelta(seconds=100)
    fact(berth, sheet, "from", start, pod=pod, deployment=deployment)
    while spans.facts_take():
        pass
    assert 100 <= selectors.balance_for(berth.tenant_id).accruing_pico < 130
    fact(berth, sheet, "to", start, pod=pod, deployment=deployment)
    rate(utcnow())


def test_what_the_database_refuses_of_one_tenant_stops_no_other(
    database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, other = harbour(), harbour()
    deployments = uuid4(), uuid4()
    for berth, deployment in zip((refused, other), deployments, strict=True):
        sheet, pod = dedicated(berth, 3600), uuid4()
        fact(berth, sheet, "from", clock("10:00"), pod=pod, deployment=deployment)
        fact(berth, sheet, "to", clock("10:10"), pod=pod, deployment=deployment)
    post = rating.charges_post

    def refuse(**arguments: Any) -> None:
        if arguments["tree"].tenant_id == refused.tenant_id:
            raise IntegrityError("a rule of the books")
        post(**arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rating, "charges_post", refuse)
        rate(clock("11:00"))
    assert [len(booked(deployment)) for deployment in deployments] == [0, 1]
    said = f"{refused.tenant_id} is not rated: a rule of the books"
    assert Outbox.objects.filter(topic=ALARM, payload__sentence=said).count() == 1
    rate(clock("11:01"))
    assert [len(booked(deployment)) for deployment in deployments] == [1, 1]


def test_a_fact_that_is_none_is_set_aside_and_stops_no_other(database: None) -> None:
    key = f"billable:{uuid4()}"
    outbox.publish(topic=spans.TOPIC, dedupe_key=key, payload={"event": "born"})
    while spans.facts_take():
        pass
    assert Quarantine.objects.filter(reason__startswith="no billable fact").exists()
    assert Outbox.objects.get(dedupe_key=key).published_at is not None


@pytest.mark.parametrize("change", [{"tenant_id": str(uuid4())}, {"accelerator_count": 2**40}])
def test_a_fact_that_the_database_refuses_is_set_aside_and_stops_no_other(
    database: None, change: dict[str, Any]
) -> None:
    berth, pod, deployment = harbour(), uuid4(), uuid4()
    sheet = dedicated(berth, 3600)
    refused = payload(berth, sheet, "from", NOON, pod=uuid4(), deployment=deployment, since=NOON) | change
    key = f"billable:{uuid4()}"
    outbox.publish(topic=spans.TOPIC, dedupe_key=key, payload=refused)
    fact(berth, sheet, "from", NOON, pod=pod, deployment=deployment)
    while spans.facts_take():
        pass
    assert Quarantine.objects.filter(payload__contains=refused["pod_uid"]).count() == 1
    assert not BillableSpan.objects.filter(pod_uid=refused["pod_uid"]).exists()
    assert BillableSpan.objects.filter(pod_uid=pod).exists()
    assert Outbox.objects.get(dedupe_key=key).published_at is not None
    fact(berth, sheet, "to", NOON, pod=pod, deployment=deployment)
    rate(NOON)
