"""A small world in values: rows, one cluster and one gateway that do what a decision says. No I/O."""

import itertools
from dataclasses import dataclass, field, replace
from uuid import UUID

from inference.core import decide as do
from inference.core.decide import decide
from inference.core.rows import DELETED, DeploymentRow, EndpointRow, ReplicaRow
from inference.core.words import Finalizer, ReplicaState
from k8s.desired import (
    GENERATION_LABEL,
    SPEC_HASH_LABEL,
    PoolBinding,
    RegionBinding,
    TenantSpec,
    WorkloadSpec,
)
from k8s.observe import Observed
from tests.inference.values import pod

TENANT, ENDPOINT, DEPLOYMENT = UUID(int=1), UUID(int=2), UUID(int=3)


def deployment_row(**changes) -> DeploymentRow:
    """A dedicated deployment of one replica that nothing was done for yet."""
    replicas = changes.pop("wanted", 1)
    facts = {
        "workload": WorkloadSpec(
            tenant_id=TENANT,
            endpoint_id=ENDPOINT,
            deployment_id=DEPLOYMENT,
            generation=1,
            replicas=replicas,
            image="engine.moorage.local/vllm-cpu:0.32.0",
            args=("/weights/tiny", "--served-model-name", "tiny"),
            cpu_millis=500,
            memory_bytes=1 << 30,
        ),
        "pool": PoolBinding(name="cpu", arch="amd64"),
        "region": RegionBinding(name="here"),
        "tenant": TenantSpec(tenant_id=TENANT, pods=4),
        "accelerators": 2,
        "paid": True,
        "reserved": 0,
        "held": True,
        "applied": "",
        "fault": None,
        "fresh": False,
        "seen": None,
        "replicas": (),
        "weights_known": True,
        "pool_free": 8,
    }
    return DeploymentRow(**{**facts, **changes})


def endpoint_row(*deployments: DeploymentRow, **changes) -> EndpointRow:
    """A new endpoint."""
    facts = {
        "id": ENDPOINT,
        "generation": 1,
        "observed_generation": 0,
        "stop": "",
        "deleting": False,
        "routed": "",
        "conditions": (),
        "deployments": deployments or (deployment_row(),),
    }
    return EndpointRow(**{**facts, **changes})


@dataclass
class World:
    """One endpoint and its surroundings. `room`: free accelerators; `credit`: whether a hold can be placed."""

    row: EndpointRow
    room: int = 8
    credit: bool = True
    finalizers: tuple[Finalizer, ...] = tuple(Finalizer)
    uids: itertools.count = field(default_factory=lambda: itertools.count(1000))

    @property
    def deployment(self) -> DeploymentRow:
        return self.row.deployments[0]

    def set(self, **changes) -> None:
        """Change the deployment's row."""
        self.row = replace(self.row, deployments=(replace(self.deployment, **changes),))

    def one_pass(self) -> do.Decision:
        """Decide, do it all, let the cluster move on, look at it, record."""
        decision = decide(self.row)
        for action in decision.actions:
            self.perform(action)
        self.cluster_moves()
        self.finalizers = decision.finalizers
        self.row = replace(self.row, conditions=decision.conditions, observed_generation=self.row.generation)
        return decision

    def perform(self, action: do.Action) -> None:
        """What the reconciler's performer does, in values."""
        row = self.deployment
        match action:
            case do.Reserve(accelerators=wanted):
                if wanted > row.reserved:
                    step = row.accelerators
                    wanted = row.reserved + min(wanted - row.reserved, self.room // step * step)
                self.room -= wanted - row.reserved
                self.set(reserved=wanted, pool_free=self.room)
            case do.PlaceHold():
                self.set(held=self.credit)
            case do.CloseHold():
                self.set(held=False)
            case do.Apply():
                manifest = next(item for item in action.objects() if item["kind"] == "Deployment")
                labels = manifest["metadata"]["labels"]
                seen = Observed(
                    DEPLOYMENT,
                    int(labels[GENERATION_LABEL]),
                    labels[SPEC_HASH_LABEL],
                    manifest["spec"]["replicas"],
                    0,
                    False,
                    "",
                    "",
                    row.seen.pods if row.seen else (),
                )
                self.set(applied=action.digest, seen=seen)
            case do.DeleteWorkload():
                gone = replace(row.seen, generation=0, replicas=0, spec_hash="") if row.seen else None
                self.set(applied=DELETED, seen=gone)
            case do.Probe(pod_uid=uid):
                proven = tuple(
                    replace(item, state=ReplicaState.SERVING, proven=True) if item.pod_uid == uid else item
                    for item in row.replicas
                )
                self.set(replicas=proven)
            case do.ProgramRoute(routed=routed):
                self.row = replace(self.row, routed=routed)
            case do.RemoveRoute():
                self.row = replace(self.row, routed="")

    def cluster_moves(self) -> None:
        """Pods follow the object and become ready; a whole listing follows."""
        row = self.deployment
        if row.seen is None:
            self.set(fresh=True, replicas=())
            return
        pods = [item for item in row.seen.pods if item.spec_hash == row.seen.spec_hash and not item.terminating]
        pods = [replace(item, ready=True, reason="Running") for item in pods[: row.seen.replicas]]
        while len(pods) < row.seen.replicas:
            pods.append(pod(UUID(int=next(self.uids)), spec_hash=row.seen.spec_hash))
        known = {item.pod_uid: item for item in row.replicas}
        replicas = tuple(
            known.get(UUID(item.uid), ReplicaRow(UUID(item.uid), ReplicaState.PROVING, proven=False)) for item in pods
        )
        seen = replace(row.seen, pods=tuple(pods), ready=len(pods), settled=True)
        gone = seen.generation == 0 and not pods
        self.set(seen=None if gone else seen, replicas=replicas, fresh=True)
