"""A tenant with prices and money, and the events that a gateway would journal for it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from django.db import connection
from django.db.backends.signals import connection_created

from billing import services
from billing.ingest import Ingested, Journalled, events_ingest
from billing.models import LedgerAccount
from kernel import pricing
from kernel.clock import utcnow
from kernel.ids import new_id
from kernel.pricing import ACCEL_SECOND, IN_HIT, IN_MISS, OUT, Rate, Sheet
from kernel.problems import Problem
from kernel.usage import ENGINE_FINAL, TOKENS, UsageEvent
from tenants.services import tenant_create

UNIT = 10**12
REGION = "local"
POOL = f"{REGION}/berths"
LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)
PRICES = {IN_HIT: Rate(28_000), IN_MISS: Rate(280_000), OUT: Rate(420_000)}

FREE_TOKENS = dict.fromkeys(PRICES, Rate(0))


@dataclass(slots=True)
class Harbour:
    """One tenant's world: `boot` counts the records of its own journal."""

    tenant_id: UUID
    sku: str
    sheet: Sheet
    gateway_id: str
    region: str
    boot_id: UUID = field(default_factory=uuid4)
    seq: int = 0

    def event(self, **changes: Any) -> UsageEvent:
        """A priced request of 100 missed and 20 answered tokens, unless told otherwise."""
        now = utcnow()
        event = UsageEvent(
            event_id=new_id(),
            source=self.gateway_id,
            tenant_id=self.tenant_id,
            subject_id=uuid4(),
            kind=TOKENS,
            sku=self.sku,
            region=self.region,
            currency="USD",
            started_at=now - timedelta(seconds=2),
            ended_at=now,
            counts={IN_MISS: 100, OUT: 20},
            sheet=self.sheet.sha256(),
            quoted_pico=0,
            provenance=ENGINE_FINAL,
            finish="stop",
            purse="general",
            generation=1,
        )
        event = replace(event, **{name: value for name, value in changes.items() if name != "quoted_pico"})
        quoted = changes.get("quoted_pico")
        if quoted is None:
            quoted = pricing.total(pricing.rate(self.sheet, event.counts))
        return replace(event, quoted_pico=quoted)

    def record(self, event: UsageEvent | Mapping[str, Any]) -> Journalled:
        """The event as the next record of this harbour's journal."""
        self.seq += 1
        payload = event.to_json() if isinstance(event, UsageEvent) else event
        return Journalled(self.gateway_id, self.boot_id, self.seq, payload)

    def ingest(self, *events: UsageEvent) -> Ingested:
        """Journal and book events."""
        return events_ingest([self.record(event) for event in events])

    def hold(self, amount: int, *, generation: int = 1, transfer: int = 1) -> None:
        """Lend that much to the gateways, as the lender's PostgreSQL step does."""
        placed = one(
            "SELECT hold_place(%s::uuid, 'USD', %s, %s, %s, %s, false)",
            self.tenant_id,
            f"gateway:general:{self.region}",
            generation,
            transfer,
            amount,
        )
        assert placed == amount

    def posted(self) -> dict[str, int]:
        """Account kind → posted, zero ones left out."""
        rows = LedgerAccount.objects.filter(tenant_id=self.tenant_id)
        return {row.kind: row.posted for row in rows if row.posted}

    def held(self) -> dict[str, int]:
        """Account kind → held, zero ones left out."""
        rows = LedgerAccount.objects.filter(tenant_id=self.tenant_id)
        return {row.kind: row.held for row in rows if row.held}


def harbour(*, money: int = 10 * UNIT, prices: Mapping[str, Rate] = PRICES, region: str = REGION) -> Harbour:
    """A fresh tenant with its own SKU, a public price in a region and that much money."""
    tenant = tenant_create(name="Harbour", currency="USD")
    name = tenant.id.hex[-12:]
    sheet = Sheet(f"{name}:shared", region, "USD", LONG_AGO, dict(prices))
    services.sheet_publish(sheet=sheet, actor="t")
    if money:
        services.topup(tenant_id=tenant.id, currency="USD", amount_pico=money, idem_key="first", actor="t")
    return Harbour(tenant.id, sheet.sku, sheet, f"gw-{name}", region)


def dedicated(berth: Harbour, num_pico: int, den: int = 3600) -> Sheet:
    """A public price of accelerator time for a harbour's dedicated SKU, whose tokens cost nothing."""
    sku = berth.sku.replace(":shared", ":dedicated:cpu")
    sheet = Sheet(sku, REGION, "USD", LONG_AGO, {ACCEL_SECOND: Rate(num_pico, den), **FREE_TOKENS})
    services.sheet_publish(sheet=sheet, actor="t")
    return sheet


def one(sql: str, *parameters: Any) -> Any:
    """The first column of the first row."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()[0]


def run(sql: str, *parameters: Any) -> None:
    """Execute."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


@contextmanager
def as_system_in_a_thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run a loop of the product beside a block, as the system role on every connection that it opens."""
    stop = threading.Event()

    def become_system(**_: Any) -> None:
        if threading.current_thread() is thread:
            run("SET ROLE moorage_system")

    def loop() -> None:
        try:
            work(stop)
        finally:
            connection.close()

    thread = threading.Thread(target=loop)
    connection_created.connect(become_system, weak=False)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        connection_created.disconnect(become_system)


def at_once(*works: Callable[[], object]) -> list[str]:
    """Run in threads of the system role; what each came to: done, or the code of its problem."""
    told: list[str] = []

    def run(work: Callable[[], object]) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET ROLE moorage_system")
            work()
            told.append("done")
        except Problem as problem:
            told.append(problem.type.code)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(told)
