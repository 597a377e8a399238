"""What a pass reads: an endpoint, its deployments and replicas, and what was seen of them. Pure."""

from dataclasses import dataclass
from uuid import UUID

from inference.core.conditions import Condition
from inference.core.words import ReplicaState
from k8s.desired import PoolBinding, RegionBinding, TenantSpec, WorkloadSpec
from k8s.observe import Observed, ObservedPod

DELETED = "deleted"
PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the cluster or a port refused the last attempt."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Absent:
    """Stands where a WorkloadSpec would: the catalogue or the pool no longer says how to run the deployment."""

    deployment_id: UUID
    replicas: int
    sentence: str


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One replica that is not gone; `proven` until it stops answering or is lost from sight for long."""

    pod_uid: UUID
    state: ReplicaState
    proven: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRow:
    """One deployment with what it should run on and what was seen of it.

    `workload.replicas` is what the customer asked for. `applied` is the digest that the cluster last
    accepted, PENDING during an attempt, DELETED after a delete, "" before the first. `fresh` says that all facts
    are younger than that, `told` that a watch has spoken of it since, `heard` that what it said is no echo of our
    own write. `owned` stands for the fields that the cluster then called ours. `weights_known` says that the pool
    vouches for the weights. `nodes_free` counts whole nodes, where a replica spans several.
    """

    workload: WorkloadSpec | Absent
    pool: PoolBinding
    region: RegionBinding
    tenant: TenantSpec
    accelerators: int
    paid: bool
    reserved: int
    held: bool
    applied: str
    fault: Fault | None
    fresh: bool
    seen: Observed | None
    replicas: tuple[ReplicaRow, ...]
    weights_known: bool
    pool_free: int
    nodes_free: int = 0
    owned: str = ""
    told: bool = False
    heard: bool = False

    @property
    def id(self) -> UUID:
        """The deployment's id."""
        return self.workload.deployment_id

    @property
    def pods(self) -> tuple[ObservedPod, ...]:
        """Its pods as last seen."""
        return self.seen.pods if self.seen else ()

    @property
    def open_pods(self) -> frozenset[UUID]:
        """Pods that take requests."""
        return frozenset(UUID(pod.uid) for pod in self.pods if pod.ready and not pod.terminating)

    @property
    def serving(self) -> int:
        """How many replicas customers reach."""
        return sum(item.state is ReplicaState.SERVING and item.pod_uid in self.open_pods for item in self.replicas)

    @property
    def in_doubt(self) -> bool:
        """What was seen last differs from what the cluster accepted, and is too old to say that it drifted."""
        return not (self.fresh or self.heard) and (self.seen is None or self.seen.owned != self.owned)

    @property
    def is_empty(self) -> bool:
        """No pod is left, and we know it."""
        return not self.applied or (self.fresh and not self.pods and not self.replicas)

    @property
    def is_gone(self) -> bool:
        """Neither object nor pod is left, and we know it."""
        if not self.applied:
            return not self.replicas
        return self.applied == DELETED and self.fresh and self.seen is None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRow:
    """An endpoint's intent and status. `stop` is "", Paused or Suspended."""

    id: UUID
    generation: int
    observed_generation: int
    stop: str
    deleting: bool
    routed: str
    conditions: tuple[Condition, ...]
    deployments: tuple[DeploymentRow, ...]

    @property
    def serving(self) -> int:
        """How many replicas customers reach."""
        return sum(item.serving for item in self.deployments)

    def wanted(self, deployment: DeploymentRow) -> int:
        """Replicas of a deployment that the customer wants now."""
        return 0 if self.stop or self.deleting else deployment.workload.replicas
