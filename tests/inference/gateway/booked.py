"""What a gateway journalled, booked by the product's own meter: the books hold whatever happened to the gateway."""

from uuid import UUID

from billing import books, services
from billing.meter import Gateway as Internal
from billing.meter import gateway_pull
from billing.models import GatewayJournal, LedgerAccount, UsageEvent
from tenants.models import Tenant as Row
from tests.billing.harbour import one
from tests.conftest import as_role
from tests.inference.gateway.world import CURRENCY, REGION, TOKEN, Gateway, Tenant

LENT = 10**15


def lend(tenant: Tenant) -> None:
    """The tenant in PostgreSQL, with the money that its float holds in Redis, and the prices of its world."""
    owner = UUID(tenant.record.tenant_id)
    Row.objects.create(id=owner, name="Caller", currency=CURRENCY)
    services.sheet_publish(sheet=tenant.world.price(), actor="t")
    services.topup(tenant_id=owner, currency=CURRENCY, amount_pico=LENT, idem_key=f"lent:{owner}", actor="t")
    placed = "SELECT hold_place(%s::uuid, %s, %s, 1, 1, %s, false)"
    assert one(placed, owner, CURRENCY, f"gateway:general:{REGION}", LENT) == LENT


def assert_booked(door: Gateway, tenant: Tenant, events: int) -> None:
    """Pull twice, so that a repeat shows: so many events, revenue is what they quote, every invariant holds."""
    owner = UUID(tenant.record.tenant_id)
    lend(tenant)
    for _ in range(2):
        gateway_pull(Internal(door.internal, TOKEN))
    booked = UsageEvent.objects.filter(tenant_id=owner)
    assert booked.count() == events
    quoted = sum(int(event.quoted_pico) for event in booked)
    posted = {row.kind: row.posted for row in LedgerAccount.objects.filter(tenant_id=owner) if row.posted}
    assert posted == {"prepaid": LENT - quoted, **({"revenue": quoted} if quoted else {})}
    with as_role("auditor"):
        assert books.check() == []
    GatewayJournal.objects.all().delete()  # this gateway is gone for good
