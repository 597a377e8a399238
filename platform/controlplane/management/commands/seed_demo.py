"""What a newcomer needs to try Moorage: an operator, a tenant with money, a login, a key, prices, a shared endpoint.

Every step is skipped where it was done before, so each start may run it.
"""

import secrets
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand
from django.db import transaction

from billing import services as billing
from billing.selectors import sheet_for
from controlplane import keys, projection
from controlplane.demo import Demo, demo_file, write_demo
from inference import services as inference
from inference.catalogue_files import LOCAL_RELEASE
from inference.core.words import Rung
from inference.models import Endpoint, Pool
from inference.pools import CPU_ACCELERATOR, pool_ensure_local
from inference.selectors import sku_of
from kernel import money
from kernel.clock import utcnow
from kernel.pricing import ACCEL_SECOND, IN_HIT, IN_MISS, KTPM_DAY, OUT, Rate, Sheet
from tenants.models import Role, Scope, Tenant, TenantKind
from tenants.services import member_add, tenant_create

ACTOR = "seed_demo"
CURRENCY = "USD"
TEST_RELEASE = "tiny-deepseek"
USERNAME, OPERATOR_USERNAME = "demo", "operator"
CREDIT = "100"
HOUR_S = 3600
# Demo prices: per token in pico-dollars (0.003, 0.15 and 0.60 dollars a million), a CPU pool at 0.35 dollars an hour,
# a thousand reserved tokens a minute at 0.40 dollars a day. Where time or room is bought, tokens cost nothing.
TOKENS = {IN_HIT: Rate(3_000), IN_MISS: Rate(150_000), OUT: Rate(600_000)}
NO_TOKENS = {IN_HIT: Rate(0), IN_MISS: Rate(0), OUT: Rate(0)}
CPU_HOUR = {ACCEL_SECOND: Rate(350_000_000_000, HOUR_S), **NO_TOKENS}
RESERVED_DAY = {KTPM_DAY: Rate(400_000_000_000), **NO_TOKENS}


class Command(BaseCommand):
    help = "Make a demo tenant with money, a login, a key, prices and a shared endpoint."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        pool_ensure_local(weights_root=settings.WEIGHTS_DIR)
        releases = [TEST_RELEASE, *([LOCAL_RELEASE] if settings.LOCAL_MODEL else [])]
        for region in sorted({*Pool.objects.values_list("region", flat=True)}):
            for release in releases:
                publish_prices(release, region)
        operator = operator_tenant()
        for release in releases:
            shared_endpoint(operator, release)
        if not demo_file().exists():
            write_demo(demo_tenant(releases[-1], operator))
        projection.project_all()


def publish_prices(release: str, region: str) -> None:
    """A public sheet per rung, in force from a minute ago."""
    skus = {
        sku_of(release, Rung.SHARED, ""): TOKENS,
        sku_of(release, Rung.RESERVED, ""): RESERVED_DAY,
        sku_of(release, Rung.DEDICATED, CPU_ACCELERATOR): CPU_HOUR,
    }
    now = utcnow()
    for sku, meters in skus.items():
        if sheet_for(sku=sku, region=region, currency=CURRENCY, tenant_id=None, at=now) is None:
            sheet = Sheet(sku, region, CURRENCY, now - timedelta(minutes=1), meters)
            billing.sheet_publish(sheet=sheet, actor=ACTOR)


def operator_tenant() -> Tenant:
    """The tenant that runs the shared endpoints."""
    found = Tenant.objects.filter(kind=TenantKind.OPERATOR).first()
    return found or tenant_create(name="Operator", currency=CURRENCY, kind=TenantKind.OPERATOR, actor=ACTOR)


def shared_endpoint(operator: Tenant, release: str) -> None:
    """One endpoint that everybody may call by the release's name, billed per token."""
    if not Endpoint.objects.filter(tenant=operator, name=release, archived_at__isnull=True).exists():
        inference.endpoint_create(
            tenant_id=operator.id,
            actor=ACTOR,
            name=release,
            release=release,
            rung=Rung.SHARED,
            region=settings.REGION,
        )


def owner(username: str, tenant: Tenant) -> str:
    """A person who owns the tenant; their fresh password."""
    password = secrets.token_urlsafe(12)
    user, _ = User.objects.get_or_create(username=username)
    user.set_password(password)
    user.save()
    member_add(tenant_id=tenant.id, user=user, role=Role.OWNER, actor=ACTOR)
    return password


@transaction.atomic
def demo_tenant(release: str, operator: Tenant) -> Demo:
    """A tenant with 100 dollars, a person who owns it, a key for both doors, and a person of the operator's."""
    tenant = tenant_create(name="Demo Harbour", currency=CURRENCY, actor=ACTOR)
    password, operator_password = owner(USERNAME, tenant), owner(OPERATOR_USERNAME, operator)
    billing.topup(
        tenant_id=tenant.id,
        currency=CURRENCY,
        amount_pico=money.parse(CREDIT),
        idem_key=f"demo:{tenant.id}",
        actor=ACTOR,
    )
    _, text = keys.key_create(tenant_id=tenant.id, name="demo", actor=ACTOR, scopes=list(Scope))
    return Demo(USERNAME, password, text, release, OPERATOR_USERNAME, operator_password)
