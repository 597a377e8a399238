"""Token packages: bought at once at a published price, and given back as rebates on the use that they cover.

A draw is always the quoted cost, so use is paid as any other and `billing.rebates` returns what was covered.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction

from billing import recall, services
from billing.core.packages import Bought, Used, cover
from billing.models import TokenPackage
from billing.posting import Charge, charges_post, tenant_lock
from billing.selectors import purses_paying, sheet_for
from kernel import usage
from kernel.clock import utcnow
from kernel.ids import new_id
from kernel.money import to_string
from kernel.pricing import PACKAGE, RatedLine
from kernel.problems import IDEMPOTENCY_MISMATCH, INSUFFICIENT_BALANCE, NOT_FOUND, Problem
from tenants.selectors import tenant_get
from tenants.services import audit_write

# Lines of requests after their corrections, in order of use.
USED = """
SELECT o.started_at, sum(r.quantity), r.num_pico FROM usage_event o
JOIN price_sheet s ON s.sha256 = o.sheet
JOIN usage_event u ON u.event_id = o.event_id OR u.corrects = o.event_id
JOIN rated_line r ON r.event_id = u.event_id
WHERE o.tenant_id = %(tenant)s AND o.kind = 'tokens' AND o.corrects IS NULL AND o.sku = %(sku)s
  AND o.region = %(region)s AND s.currency = %(currency)s AND o.started_at >= %(since)s AND o.started_at < %(until)s
GROUP BY o.started_at, o.event_id, r.meter, r.num_pico ORDER BY o.started_at, o.event_id, r.meter
"""


@transaction.atomic
def package_buy(
    *, tenant_id: UUID, sku: str, region: str, name: str, idem_key: str, actor: str, now: datetime | None = None
) -> TokenPackage:
    """Sell a package that the sheet in force offers, from available money and what gateways have idle.

    The same `idem_key` buys once. Problems: not_found (no such package on offer), insufficient_balance,
    idempotency_mismatch.
    """
    now = now or utcnow()
    tree = tenant_lock(tenant_id=tenant_id)
    known = TokenPackage.objects.filter(tenant_id=tenant_id, idem_key=idem_key).first()
    if known is not None:
        if (known.sku, known.region, known.name) != (sku, region, name):
            raise Problem(IDEMPOTENCY_MISMATCH, "this key bought another package; use a new key")
        return known
    currency = tenant_get(tenant_id).currency
    services.accounts_open(tenant_id=tenant_id, currency=currency)
    sheet = sheet_for(sku=sku, region=region, currency=currency, tenant_id=tenant_id, at=now)
    offer = next((item for item in sheet.packages if item.name == name), None) if sheet else None
    if sheet is None or offer is None:
        raise Problem(NOT_FOUND, f"{sku} has no package {name} in {currency}", param="name")
    package = TokenPackage(
        id=new_id(),
        tenant_id=tenant_id,
        idem_key=idem_key,
        sku=sku,
        region=region,
        currency=currency,
        name=name,
        tokens=offer.tokens,
        price=offer.price_pico,
        from_at=now,
        until_at=now + timedelta(days=offer.days),
    )
    purses = purses_paying(tenant_id=tenant_id, currency=currency, sku=sku, pool="")
    recall.bring_back(tenant_id=tenant_id, currency=currency, purses=purses, needed_pico=offer.price_pico)
    missing = services.deployment_hold_fill(
        tenant_id=tenant_id, currency=currency, deployment_id=package.id, purses=purses, needed_pico=offer.price_pico
    )
    if missing:
        raise Problem(INSUFFICIENT_BALANCE, f"{to_string(missing)} {currency} are missing for this package; top up")
    line = RatedLine(PACKAGE, offer.price_pico, 1, 1, offer.price_pico)
    event = usage.UsageEvent(
        event_id=new_id(),
        source="packages",
        tenant_id=tenant_id,
        subject_id=package.id,
        kind=usage.REBATE,
        sku=sku,
        region=region,
        currency=currency,
        started_at=now,
        ended_at=now,
        counts={PACKAGE: offer.price_pico},
        sheet=sheet.sha256(),
        quoted_pico=offer.price_pico,
        provenance=usage.ESTIMATED,
        finish="package",
    )
    subject = services.deployment_subject(package.id)
    charge = Charge(event, (line,), subject, None, event.payload_sha256())
    charges_post(tree=tree, currency=currency, charges=[charge], source_id="packages")
    services.hold_close(deployment_id=package.id)
    package.save(force_insert=True)
    audit_write(
        actor=actor,
        tenant_id=tenant_id,
        action="package.bought",
        detail={"package": str(package.id), "sku": sku, "name": name, "price": to_string(offer.price_pico)},
    )
    return package


def covered_pico(*, tenant_id: UUID, sku: str, region: str, currency: str, period: tuple[datetime, datetime]) -> int:
    """What packages cover of a period's use of a SKU, pico-units."""
    start, end = period
    rows = TokenPackage.objects.filter(
        tenant_id=tenant_id, sku=sku, region=region, currency=currency, from_at__lt=end
    ).order_by("from_at")
    if not any(row.until_at > start for row in rows):
        return 0
    bought = [Bought(row.from_at, row.until_at, row.tokens) for row in rows]
    params = {"tenant": tenant_id, "sku": sku, "region": region, "currency": currency}
    return cover(_used(params | {"since": bought[0].from_at, "until": end}), bought, start=start)


def _used(params: dict[str, Any]) -> Iterator[Used]:
    with connection.cursor() as cursor:
        cursor.execute(USED, params)
        for at, tokens, num_pico in cursor:
            yield Used(at, int(tokens), int(num_pico))
