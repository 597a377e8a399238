"""A month of one tenant by a moving clock: shared, reserved and dedicated use, a price change, a late event, a credit.

Prices: a million missed tokens 0.15 and answered ones 0.60, from 16 November on 0.50; on weekdays from 09:00 to 12:00
in Beijing (01:00 to 04:00 UTC) twice that. A kTPM-day is 0.20, an accelerator-hour 0.35.

    3 Nov 02:00   1,000,000 missed, 500,000 answered, peak       0.30   + 0.60   =  0.90
    3 Nov 12:00   the same, off-peak                             0.15   + 0.30   =  0.45
    15 Nov 23:59:59  200,000 answered, over the price change     200,000 × 0.60/M =  0.12
    16 Nov 00:00  200,000 answered                               200,000 × 0.50/M =  0.10
    10 Nov 18:00 to 12 Nov 06:00  20 kTPM: 10, 11 and 12 Nov     3 × 20 × 0.20   = 12.00
    20 Nov 10:30 to 12:15  one accelerator, 6,300 s              1.75 × 0.35     =  0.6125
                                                                 November        = 14.1825, billed as 14.18
    29 Nov 12:00  300,000 answered, told on 10 Dec               300,000 × 0.50/M =  0.15, on December's invoice
    10 Dec        the 0.45 of 3 Nov is taken back                credit note     = -0.45

Promotional credit of 1.00 pays first: the 0.90, and 0.10 of the 0.45, which the correction gives back. Own money of
100.00 pays 14.3325 - 1.00 and gets 0.35 back: 87.0175 are left. Revenue is 14.3325 - 0.45 - 0.0025 of rounding = 13.88,
as the three documents say: 14.18 - 0.45 + 0.15.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from billing import months, reserved, services, spans
from billing.corrections import usage_correct
from billing.ingest import events_ingest
from billing.models import Invoice, InvoiceLine
from billing.selectors import invoice_facts_for
from kernel import pricing
from kernel.clock import DAY
from kernel.ids import derived_id
from kernel.pricing import ACCEL_SECOND, IN_HIT, IN_MISS, KTPM_DAY, OUT, ClockWindow, Rate, Sheet
from kernel.usage import UsageEvent
from tenants import outbox
from tests.billing.harbour import FREE_TOKENS, LONG_AGO, POOL, REGION, UNIT, Harbour, harbour

CHANGE = datetime(2033, 11, 16, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def shared_sheet(sku: str, out: int, effective_from: datetime) -> Sheet:
    meters = {IN_HIT: Rate(3_000), IN_MISS: Rate(150_000), OUT: Rate(out)}
    peak = {meter: Rate(2 * rate.num_pico) for meter, rate in meters.items()}
    window = ClockWindow(frozenset(range(1, 6)), 9 * 60, 12 * 60, peak)
    return Sheet(sku, REGION, "USD", effective_from, meters, windows=(window,), utc_offset_min=8 * 60)


class Month:
    """The tenant, its SKUs, and what happens to it."""

    def __init__(self) -> None:
        self.berth: Harbour = harbour(money=100 * UNIT)
        tenant_id = self.berth.tenant_id
        services.promo_grant(tenant_id=tenant_id, currency="USD", amount_pico=UNIT, idem_key="welcome", actor="t")
        release = tenant_id.hex[-10:]
        self.old = shared_sheet(f"{release}:shared", 600_000, LONG_AGO)
        self.new = shared_sheet(f"{release}:shared", 500_000, CHANGE)
        self.dedicated = Sheet(
            f"{release}:dedicated:cpu",
            REGION,
            "USD",
            LONG_AGO,
            {ACCEL_SECOND: Rate(35 * UNIT // 100, 3600), **FREE_TOKENS},
        )
        self.reserved = Sheet(
            f"{release}:reserved", REGION, "USD", LONG_AGO, {KTPM_DAY: Rate(UNIT // 5), **FREE_TOKENS}
        )
        for sheet in (self.old, self.new, self.dedicated, self.reserved):
            services.sheet_publish(sheet=sheet, actor="t")
        self.endpoint, self.deployment, self.pod = uuid4(), uuid4(), uuid4()
        self.berth.hold(5 * UNIT)

    def use(self, started: datetime, *, told: datetime | None = None, seconds: int = 0, **counts: int) -> UsageEvent:
        """A request that started then, journalled as it ended or when it is told of."""
        ended = started + timedelta(seconds=seconds)
        sheet = self.old if started < CHANGE else self.new
        event = self.berth.event(
            event_id=derived_id(ended, str(self.berth.tenant_id), str(started)),
            sku=sheet.sku,
            sheet=sheet.sha256(),
            started_at=started,
            ended_at=ended,
            counts=counts,
            quoted_pico=pricing.total(pricing.rate(sheet.at(started), counts)),
        )
        assert events_ingest([self.berth.record(event)], now=told or ended).booked == 1
        return event

    def reserve(self, event: str, when: datetime) -> None:
        """The endpoint's reservation begins or ends."""
        outbox.publish(
            topic=reserved.TOPIC,
            dedupe_key=f"reserved:{self.endpoint}:{event}",
            payload={
                "endpoint_id": str(self.endpoint),
                "tenant_id": str(self.berth.tenant_id),
                "sku": self.reserved.sku,
                "region": REGION,
                "ktpm": 20,
                "event": event,
                "at": when.isoformat(),
            },
        )

    def serve(self, event: str, when: datetime) -> None:
        """The dedicated pod serves, lives or ends."""
        outbox.publish(
            topic=spans.TOPIC,
            dedupe_key=f"billable:{self.pod}:{event}:{when}",
            payload={
                "deployment_id": str(self.deployment),
                "endpoint_id": str(uuid4()),
                "tenant_id": str(self.berth.tenant_id),
                "pod_uid": str(self.pod),
                "sku": self.dedicated.sku,
                "region": REGION,
                "accelerator": "cpu",
                "accelerator_count": 1,
                "event": event,
                "from_at": at("2033-11-20T10:30:00").isoformat(),
                "at": when.isoformat(),
            },
        )

    def timers(self, now: datetime) -> None:
        """What the beat does."""
        spans.facts_take()
        reserved.facts_take()
        spans.slices_rate(now=now)
        reserved.days_rate(now=now)
        months.month_close(now=now)

    def run_until(self, now: datetime, end: datetime) -> Iterator[datetime]:
        """Timers at every midnight from `now` to `end`, and five minutes before."""
        while now < end:
            self.timers(now - timedelta(minutes=5))
            self.timers(now)
            yield now
            now += DAY

    def lines(self, invoice: Invoice) -> list[tuple[str, str, int, int, int]]:
        """(rung, meter, quantity, exact pico-units, minor units) of a document, in order of rung and price."""
        rows = InvoiceLine.objects.filter(invoice=invoice).order_by("sku", "meter", "num_pico")
        return [(r.sku.split(":")[1], r.meter, r.quantity, int(r.amount_pico), r.amount_minor) for r in rows]


def invoices(month: Month) -> list[Invoice]:
    return list(Invoice.objects.filter(tenant_id=month.berth.tenant_id).order_by("issued_at", "kind"))


def test_a_scenario_month_to_the_cent_and_the_pico(database: None) -> None:
    month = Month()
    services.reserved_hold_place(
        tenant_id=month.berth.tenant_id,
        endpoint_id=month.endpoint,
        sku=month.reserved.sku,
        region=REGION,
        pool=POOL,
        ktpm=20,
    )
    services.hold_place(
        tenant_id=month.berth.tenant_id,
        deployment_id=month.deployment,
        sku=month.dedicated.sku,
        region=REGION,
        pool=POOL,
        accelerator_seconds=3600,
    )
    month.use(at("2033-11-03T02:00:00"), in_miss=1_000_000, out=500_000)
    garbled = month.use(at("2033-11-03T12:00:00"), in_miss=1_000_000, out=500_000)
    month.reserve("from", at("2033-11-10T18:00:00"))
    for _ in month.run_until(at("2033-11-11T00:00:00"), at("2033-11-12T12:00:00")):
        pass
    month.reserve("to", at("2033-11-12T06:00:00"))
    services.hold_close(deployment_id=month.endpoint)
    month.timers(at("2033-11-12T06:00:01"))
    month.use(at("2033-11-15T23:59:59"), seconds=30, out=200_000)
    month.use(CHANGE, out=200_000)
    month.serve("from", at("2033-11-20T10:30:00"))
    for hour in ("10:50", "11:00", "11:50", "12:00"):
        month.serve("alive", at(f"2033-11-20T{hour}:00"))
        month.timers(at(f"2033-11-20T{hour}:01"))
    month.serve("to", at("2033-11-20T12:15:00"))
    services.hold_close(deployment_id=month.deployment)
    for _ in month.run_until(at("2033-12-01T00:00:00"), at("2033-12-03T12:00:00")):
        assert [invoice.status for invoice in invoices(month)] == ["draft"]
    month.timers(at("2033-12-04T00:00:00"))
    (november,) = invoices(month)
    assert (november.status, november.total_minor) == ("issued", 1418)
    assert month.lines(november) == [
        ("dedicated", ACCEL_SECOND, 6300, 612_500_000_000, 61),
        ("reserved", KTPM_DAY, 60, 12 * UNIT, 1200),
        ("shared", IN_MISS, 1_000_000, 150_000_000_000, 15),
        ("shared", IN_MISS, 1_000_000, 300_000_000_000, 30),
        ("shared", OUT, 200_000, 100_000_000_000, 10),
        ("shared", OUT, 700_000, 420_000_000_000, 42),
        ("shared", OUT, 500_000, 600_000_000_000, 60),
    ]

    told = at("2033-12-10T09:00:00")
    late = month.use(at("2033-11-29T12:00:00"), told=told, out=300_000)
    usage_correct(
        event_id=garbled.event_id, counts={IN_MISS: -1_000_000, OUT: -500_000}, actor="ann", reason="garbled answers"
    )
    month.timers(told)
    month.timers(at("2034-01-04T00:00:00"))
    november, credit, december = invoices(month)
    assert (november.total_minor, credit.total_minor, december.total_minor) == (1418, -45, 15)
    assert (credit.corrects_id, credit.kind) == (november.id, "credit_note")
    assert month.lines(credit) == [
        ("shared", IN_MISS, -1_000_000, -150_000_000_000, -15),
        ("shared", OUT, -500_000, -300_000_000_000, -30),
    ]
    assert december.period.lower == at("2033-12-01")
    assert [fact.event for fact in invoice_facts_for(december)] == [late.event_id]
    assert month.berth.posted() == {
        "promo": 100_000_000_000,
        "prepaid": 87_017_500_000_000,
        "revenue": 13_880_000_000_000,
    }
    # The gateways keep what they did not draw of their 5.00: own money, since 1.72 were drawn.
    assert month.berth.held() == {"prepaid": 3_280_000_000_000}
