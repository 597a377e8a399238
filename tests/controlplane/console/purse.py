"""Money for tests of the console: prices of the test model, a top-up, and metered requests."""

from datetime import datetime, timedelta
from uuid import UUID, uuid4

from django.conf import settings

from billing.ingest import Journalled, events_ingest
from billing.selectors import sheet_for
from billing.services import accounts_open, sheet_publish, topup
from kernel import ids
from kernel.clock import month_of, utcnow
from kernel.pricing import ACCEL_SECOND, IN_HIT, IN_MISS, KTPM_DAY, OUT, Rate, Sheet, rate, total
from kernel.usage import ENGINE_FINAL, TOKENS, UsageEvent
from tests.controlplane.console.conftest import Person

SHARED, DEDICATED = "tiny-deepseek:shared", "tiny-deepseek:dedicated:cpu"
RESERVED = "tiny-deepseek:reserved"
HOUR_PICO = 180_000_000_000
FREE = {IN_HIT: Rate(0), IN_MISS: Rate(0), OUT: Rate(0)}


def publish_prices() -> None:
    """The test model is on sale, shared and dedicated."""
    for sku, meters in (
        (RESERVED, {KTPM_DAY: Rate(400_000_000_000), **FREE}),
        (DEDICATED, {ACCEL_SECOND: Rate(HOUR_PICO, 3600), **FREE}),
        (SHARED, {IN_HIT: Rate(7_000), IN_MISS: Rate(28_000), OUT: Rate(420_000)}),
    ):
        known = sheet_for(sku=sku, region=settings.REGION, currency="USD", tenant_id=None, at=utcnow())
        if known is None:
            start, _end = month_of(utcnow())
            sheet_publish(sheet=Sheet(sku, settings.REGION, "USD", start - timedelta(days=31), meters), actor="test")


def give(person: Person, amount: int) -> None:
    accounts_open(tenant_id=person.tenant.id, currency="USD")
    topup(tenant_id=person.tenant.id, currency="USD", amount_pico=amount, idem_key=f"test:{uuid4()}", actor="test")


def use(
    person: Person, *, endpoint_id: str, counts: dict[str, int], at: datetime | None = None, key_id: UUID | None = None
) -> UsageEvent:
    """One metered request, booked as the meter books it."""
    now = at or utcnow()
    sheet = sheet_for(sku=SHARED, region=settings.REGION, currency="USD", tenant_id=person.tenant.id, at=now)
    assert sheet
    event = UsageEvent(
        event_id=ids.new_id(),
        source="gateway",
        tenant_id=person.tenant.id,
        subject_id=ids.new_id(),
        kind=TOKENS,
        sku=SHARED,
        region=settings.REGION,
        currency="USD",
        started_at=now - timedelta(seconds=2),
        ended_at=now,
        counts=counts,
        sheet=sheet.sha256(),
        quoted_pico=total(rate(sheet, counts)),
        provenance=ENGINE_FINAL,
        finish="stop",
        endpoint_id=endpoint_id,
        api_key_id=key_id,
        purse="general",
        generation=1,
    )
    done = events_ingest([Journalled("gw-test", UUID(int=uuid4().int), 1, event.to_json())])
    assert done.booked == 1
    return event
