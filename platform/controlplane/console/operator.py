"""What the operator's pages show, across tenants: reads of the other rooms joined under the system role."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.contrib.auth.models import User
from django.db.models import Count, F, Q, Sum

from billing.ledger import ALARM
from billing.models import GatewayJournal, Invoice, Operation, Quarantine
from billing.selectors import Balance, balance_for
from controlplane.console import words
from controlplane.console.words import Word
from inference import clusters
from inference.models import Deployment, Endpoint, Pool
from inference.orphans import ClusterState, cluster_state
from kernel import ids
from kernel.clock import utcnow
from kernel.money import MINOR_DIGITS
from kernel.problems import NOT_FOUND, Problem
from tenants.models import Outbox, Quota, Tenant
from tenants.services import DEFAULT_QUOTAS

SHOWN = 100
ALARMS_SINCE = timedelta(hours=24)
LATE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant in the list; `used` and `quota` count accelerators."""

    id: str
    tenant: Tenant
    standing: Word
    balance: Balance
    endpoints: int
    used: int
    quota: int


@dataclass(frozen=True, slots=True)
class QuotaRow:
    """How much of a resource a tenant holds and may hold."""

    resource: str
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class InvoiceRow:
    """An invoice of any tenant; `total` in pico-units."""

    id: str
    invoice: Invoice
    status: Word
    total: int


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds accelerators of a pool."""

    tenant: str
    endpoint: str
    endpoint_id: str
    accelerators: int


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool with what is held of it and by whom, the largest first."""

    pool: Pool
    holders: tuple[Holder, ...]

    @property
    def free(self) -> int:
        """Accelerators that nobody holds."""
        return max(0, self.pool.capacity - self.pool.reserved)


@dataclass(frozen=True, slots=True)
class MeterRow:
    """One gateway's journal: `lag_s` is the age of the oldest request that may not be booked yet."""

    journal: GatewayJournal
    lag_s: int | None
    word: Word


def tenant_rows(search: str) -> list[TenantRow]:
    """The newest tenants, those whose name holds `search`; at most SHOWN."""
    found = list(Tenant.objects.filter(name__icontains=search).order_by("-created_at")[:SHOWN])
    used = _used([tenant.id for tenant in found])
    limits = {
        row.tenant_id: row.limit
        for row in Quota.objects.filter(tenant__in=[tenant.id for tenant in found], resource="accelerators")
    }
    return [
        TenantRow(
            id=ids.encode(ids.TENANT, tenant.id),
            tenant=tenant,
            standing=words.STANDINGS[tenant.standing],
            balance=balance_for(tenant.id),
            endpoints=used[tenant.id][0],
            used=used[tenant.id][1],
            quota=limits.get(tenant.id, 0),
        )
        for tenant in found
    ]


def tenant_get(tenant_id: str) -> Tenant:
    """The tenant behind `ten_…`. Problem NOT_FOUND for every other text."""
    try:
        found = Tenant.objects.filter(id=ids.decode(ids.TENANT, tenant_id)).first()
    except ValueError:
        found = None
    if found is None:
        raise Problem(NOT_FOUND, f"there is no tenant {tenant_id[:40]!r}")
    return found


def quota_rows(tenant: Tenant) -> list[QuotaRow]:
    """Every resource that has a quota."""
    endpoints, accelerators = _used([tenant.id])[tenant.id]
    used = {"endpoints": endpoints, "accelerators": accelerators}
    limits = dict(Quota.objects.filter(tenant=tenant).values_list("resource", "limit"))
    return [QuotaRow(name, used[name], limits.get(name, 0)) for name in DEFAULT_QUOTAS]


def invoice_rows(*, status: str = "", tenant: Tenant | None = None) -> list[InvoiceRow]:
    """The newest invoices and credit notes, of one status or one tenant if asked; at most SHOWN."""
    found = Invoice.objects.select_related("tenant", "corrects").order_by("-period", "-issued_at", "id")
    if status:
        found = found.filter(status=status)
    if tenant:
        found = found.filter(tenant=tenant)
    return [
        InvoiceRow(
            id=ids.encode(ids.INVOICE, item.id),
            invoice=item,
            status=words.INVOICES[item.status],
            total=item.total_minor * 10 ** (12 - MINOR_DIGITS[item.currency]),
        )
        for item in found[:SHOWN]
    ]


def operations_waiting(tenant: Tenant | None = None) -> list[tuple[Operation, str]]:
    """Acts above the limit that wait for a second person, oldest first, each with the name of who asked."""
    waiting = Operation.objects.filter(status="waiting").select_related("tenant").order_by("asked_at")
    rows = list(waiting.filter(tenant=tenant) if tenant else waiting)
    asked = [row.asked_by.removeprefix("user:") for row in rows if row.asked_by.startswith("user:")]
    names = {f"user:{user.pk}": user.get_username() for user in User.objects.filter(pk__in=asked)}
    return [(row, names.get(row.asked_by, row.asked_by)) for row in rows]


def pool_rows() -> list[PoolRow]:
    """Every pool by region and name."""
    held: dict[UUID, list[Holder]] = defaultdict(list)
    live = Deployment.objects.filter(reserved__gt=0).select_related("endpoint", "tenant").order_by("-reserved", "id")
    for row in live:
        held[row.pool_id].append(
            Holder(row.tenant.name, row.endpoint.name, ids.encode(ids.ENDPOINT, row.endpoint_id), row.reserved)
        )
    return [PoolRow(pool, tuple(held[pool.id])) for pool in Pool.objects.order_by("region", "name")]


def cluster_states() -> list[ClusterState]:
    """Every cluster, asked now: whether it answers, and what in it the database does not know."""
    return [cluster_state(name) for name in clusters.names()]


def meter_rows() -> list[MeterRow]:
    """Journals that are still written or not booked to their end."""
    open_ = Q(closed_seq=None) | Q(pulled_seq__lt=F("closed_seq"))
    now = utcnow()
    return [_meter_row(row, now) for row in GatewayJournal.objects.filter(open_).order_by("gateway_id", "-seen_at")]


def alarms() -> list[Outbox]:
    """What raised an alarm within a day, newest first: red invariants of the books, late money, full quarantine."""
    return list(Outbox.objects.filter(topic=ALARM, created_at__gt=utcnow() - ALARMS_SINCE).order_by("-id")[:SHOWN])


def quarantine() -> tuple[int, list[Quarantine]]:
    """How many events could not be booked, and the newest of them with their reasons."""
    return Quarantine.objects.count(), list(Quarantine.objects.order_by("-at")[:SHOWN])


def _meter_row(row: GatewayJournal, now: datetime) -> MeterRow:
    lag = now - row.posted_low_at if row.posted_low_at else None
    late = lag is None or lag > LATE or now - row.seen_at > LATE
    return MeterRow(
        row, None if lag is None else max(0, int(lag.total_seconds())), words.METER_LATE if late else words.METER_OK
    )


def _used(tenants: list[UUID]) -> dict[UUID, tuple[int, int]]:
    """(Endpoints, accelerators) that each tenant has asked for, as the quota counts them."""
    counts: dict[UUID, tuple[int, int]] = defaultdict(lambda: (0, 0))
    rows = (
        Endpoint.objects.filter(tenant__in=tenants, archived_at__isnull=True)
        .values("tenant_id")
        .annotate(
            endpoints=Count("id", distinct=True),
            accelerators=Sum(F("deployments__replicas") * F("deployments__accelerators"), default=0),
        )
    )
    for row in rows:
        counts[row["tenant_id"]] = (row["endpoints"], row["accelerators"])
    return counts
