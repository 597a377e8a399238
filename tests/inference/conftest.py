"""Fixtures of the inference room: a tenant, a pool on a scripted cluster, and ports that are recorded."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from inference import billable, clusters, facts, hints, ports, sweep
from inference.clock import database_now
from inference.core import replicas
from inference.facts import record_listing
from inference.models import Endpoint, Pool
from inference.reconciler import run
from inference.reconciler.run import reconcile
from inference.services import endpoint_create
from kernel import wire
from kernel.problems import INSUFFICIENT_BALANCE, Problem
from tenants.models import Tenant, TenantKind
from tenants.services import quota_set, tenant_create
from tests.inference.scripted import ScriptedCluster

REGION = "here"


@dataclass
class Neighbours:
    """What the other rooms were asked; `poor`, `deaf` and `blind` make them refuse."""

    held: dict[UUID, int] = field(default_factory=dict)
    pools: dict[UUID, str] = field(default_factory=dict)
    closed: list[UUID] = field(default_factory=list)
    routes: list[UUID] = field(default_factory=list)
    removed: list[UUID] = field(default_factory=list)
    pods: dict[UUID, list[wire.PodRecord]] = field(default_factory=dict)
    hints: list[str] = field(default_factory=list)
    poor: bool = False
    deaf: bool = False
    blind: bool = False

    def hold_place(self, *, tenant_id, deployment_id, sku, region, pool, accelerator_seconds):
        if self.poor:
            raise Problem(INSUFFICIENT_BALANCE, "top up")
        self.held[deployment_id], self.pools[deployment_id] = accelerator_seconds, pool

    def reserved_hold_place(self, *, tenant_id, endpoint_id, sku, region, pool, ktpm):
        if self.poor:
            raise Problem(INSUFFICIENT_BALANCE, "top up")
        self.held[endpoint_id], self.pools[endpoint_id] = ktpm, pool

    def hold_close(self, *, deployment_id):
        self.closed.append(deployment_id)

    def route_project(self, endpoint_ids):
        self._hear()
        self.routes.extend(endpoint_ids)

    def route_remove(self, endpoint_id):
        self._hear()
        self.removed.append(endpoint_id)

    def publish_pods(self, pods_of):
        self._hear()
        self.pods |= pods_of

    def probe(self, deployment_id, pod_uid):
        states = {pod.pod_uid: pod.state for pod in self.pods.get(deployment_id, [])}
        return not self.blind and str(pod_uid) in states

    def _hear(self):
        if self.deaf:
            raise ports.Unavailable("no Redis")


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> Iterator[Neighbours]:
    """The ports, recorded, and hints, kept instead of sent."""
    found, before = Neighbours(), list(ports._ports)
    ports.connect(
        ports.Ports(
            hold_place=found.hold_place,
            reserved_hold_place=found.reserved_hold_place,
            hold_close=found.hold_close,
            route_project=found.route_project,
            route_remove=found.route_remove,
            publish_pods=found.publish_pods,
            probe=found.probe,
        )
    )
    send = SimpleNamespace(send_task=lambda name, args, **_: found.hints.append(args[0]))
    monkeypatch.setattr(hints, "current_app", send)
    monkeypatch.setattr(hints, "_sent_at_s", {})
    for module in (hints, run):
        monkeypatch.setattr(module, "FOLD_S", 0.0)
    # Slots begin with the test: whether a replica is proven again must not hang on the hour at which it is run.
    began_s = time.time() - 1
    for module in (replicas, facts, billable):
        monkeypatch.setattr(module, "slot", lambda at: (at.timestamp() - began_s) // replicas.ALIVE_SLOT_S)
    yield found
    ports._ports[:] = before


@dataclass
class Harbour:
    """A pool on its own cluster, and what a worker and a sweep would do to it."""

    pool: Pool
    cluster: ScriptedCluster
    neighbours: Neighbours

    def look(self) -> None:
        """What sweep and watcher do: list and record."""
        record_listing(self.pool.cluster, self.cluster)

    def settle(self, endpoint: Endpoint, *, rounds: int = 6) -> Endpoint:
        """Passes, cluster and looks, in turn."""
        for _ in range(rounds):
            reconcile(endpoint.id)
            self.cluster.step()
            self.look()
        reconcile(endpoint.id)
        endpoint.refresh_from_db()
        return endpoint


@pytest.fixture
def harbour(database: None, neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harbour]:
    """A CPU pool of six in region `here` that holds the test model; its endpoints end with the test."""
    name = f"scripted-{uuid4().hex[:8]}"
    cluster = ScriptedCluster()
    # A worker takes whatever is due: what other rooms' tests left must not be among it.
    Endpoint.objects.filter(archived_at__isnull=True).update(archived_at=database_now())
    monkeypatch.setattr(sweep, "WATCHED_S", 0.0)
    monkeypatch.setattr(clusters, "cluster", lambda asked: cluster if asked == name else ScriptedCluster())
    image = "engine.moorage.local/vllm-cpu"
    pool = Pool.objects.create(
        region=REGION,
        name=name,
        cluster=name,
        accelerator="cpu",
        capacity=6,
        arch="amd64",
        engine_images={image: {"image": f"{image}:0.32.0", "version": "0.32.0"}},
        weights_root="/weights",
        releases=["tiny-deepseek"],
    )
    yield Harbour(pool, cluster, neighbours)
    # Rows are committed for real: what this test leaves must not meet the next one.
    ours = Endpoint.objects.filter(deployments__pool=pool, archived_at__isnull=True)
    Endpoint.objects.filter(id__in=list(ours.values_list("id", flat=True))).update(archived_at=database_now())
    Pool.objects.filter(id=pool.id).update(region=name)


@pytest.fixture
def tenant(harbour: Harbour) -> Tenant:
    """A customer."""
    return tenant_create(name="Acme", currency="USD")


@pytest.fixture
def operator(harbour: Harbour) -> Tenant:
    """The operator, who runs shared endpoints."""
    return tenant_create(name="Moorage", currency="USD", kind=TenantKind.OPERATOR)


def create(tenant: Tenant, **changes) -> Endpoint:
    """A dedicated endpoint of the test model."""
    facts = {
        "tenant_id": tenant.id,
        "actor": "test",
        "name": "tiny",
        "release": "tiny-deepseek",
        "rung": "dedicated",
        "region": REGION,
    }
    endpoint, _ = endpoint_create(**{**facts, **changes})
    return endpoint


def limit(tenant: Tenant, resource: str, most: int) -> None:
    """Set a quota."""
    quota_set(tenant_id=tenant.id, resource=resource, limit=most)
