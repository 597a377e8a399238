"""An engine that suddenly finds every prompt in its cache, and one that counts nothing."""

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from billing.implausible import hit_jumps_alarm, uncounted_alarm
from kernel.clock import utcnow
from kernel.pricing import IN_HIT, IN_MISS, OUT
from tenants.models import Outbox
from tests.billing.harbour import Harbour, harbour


def serve(berth: Harbour, pod: UUID, ended_at: datetime, hit: int, miss: int) -> None:
    counts = {IN_HIT: hit, IN_MISS: miss, OUT: 10}
    event = berth.event(pod_uid=pod, started_at=ended_at - timedelta(seconds=2), ended_at=ended_at, counts=counts)
    assert berth.ingest(event).booked == 1


@pytest.mark.parametrize(
    ("hit", "miss", "jumps"),
    [(19_999, 1, 1), (12_000, 8_000, 1), (8_000, 12_000, 0), (9_999, 0, 0)],
    ids=["all but one token", "by forty points", "by less", "of too few tokens"],
)
def test_fault_27_a_jump_of_the_share_of_cached_prompts_is_an_alarm_once_an_hour(
    database: None, hit: int, miss: int, jumps: int
) -> None:
    berth, old, new = harbour(), uuid4(), uuid4()
    now = utcnow()
    serve(berth, old, now - timedelta(hours=3), 4_000, 16_000)
    serve(berth, new, now - timedelta(minutes=10), hit, miss)
    for _ in range(2):
        hit_jumps_alarm(now=now)
    alarms = Outbox.objects.filter(dedupe_key__startswith=f"hits:{new}:")
    assert alarms.count() == jumps
    assert all(f"after {20} %" in alarm.payload["sentence"] for alarm in alarms)


def test_fault_27_a_new_sku_and_a_pod_that_always_hits_raise_no_alarm(database: None) -> None:
    now = utcnow()
    for hours in ((), (3,)):
        berth, pod = harbour(), uuid4()
        for earlier in hours:
            serve(berth, pod, now - timedelta(hours=earlier), 18_000, 2_000)
        serve(berth, pod, now - timedelta(minutes=10), 19_999, 1)
        hit_jumps_alarm(now=now)
        assert not Outbox.objects.filter(dedupe_key__startswith=f"hits:{pod}:").exists()


def test_text_that_was_delivered_uncounted_is_an_alarm_once_an_hour(database: None) -> None:
    berth, pod, now = harbour(), uuid4(), utcnow()
    at = now - timedelta(minutes=5)
    for _ in range(3):
        event = berth.event(
            pod_uid=pod, started_at=at, ended_at=at, counts={IN_MISS: 0, OUT: 0}, provenance="estimated"
        )
        assert berth.ingest(event).booked == 1
    for _ in range(2):
        uncounted_alarm(now=now)
    (alarm,) = Outbox.objects.filter(dedupe_key__startswith=f"uncounted:{pod}:")
    assert alarm.payload["sentence"].startswith(f"3 answers of {berth.sku}")
