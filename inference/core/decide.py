"""One pass over an endpoint: what to do next, and what its status is. Pure.

The same rows and facts give the same decision; in sync, it holds no action.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from inference.core import conditions as c
from inference.core.conditions import Condition
from inference.core.rows import DELETED, Absent, DeploymentRow, EndpointRow
from inference.core.status import status_of
from inference.core.words import Finalizer
from k8s.cluster import Object
from k8s.desired import SPEC_HASH_LABEL, WorkloadSpec, deployment_objects, tenant_objects

_DOUBT_RETRY_S = 1
_PROBE_RETRY_S = 2
_ACTION_RETRY_S = 5
_WATCH_RETRY_S = 15


@dataclass(frozen=True, slots=True)
class Reserve:
    """Bring the deployment's share of its pool to `accelerators`, as far as there is room."""

    deployment_id: UUID
    accelerators: int


@dataclass(frozen=True, slots=True)
class PlaceHold:
    """Reserve money for a deployment that is to run again."""

    deployment_id: UUID


@dataclass(frozen=True, slots=True)
class CloseHold:
    """Return the money of a deployment that runs no more."""

    deployment_id: UUID


@dataclass(frozen=True, slots=True)
class Apply:
    """Make the cluster hold `objects`, the manifests behind `digest`."""

    deployment_id: UUID
    digest: str
    manifests: str

    def objects(self) -> list[Object]:
        """The manifests."""
        loaded: list[Object] = json.loads(self.manifests)
        return loaded


@dataclass(frozen=True, slots=True)
class DeleteWorkload:
    """Remove the deployment's objects from the cluster."""

    deployment_id: UUID


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask a pod that is new, or answers again, for one token through the gateway."""

    deployment_id: UUID
    pod_uid: UUID


@dataclass(frozen=True, slots=True)
class Meter:
    """Tell billing that a reservation is `ktpm` from `at` on, None for now; 0 ends it."""

    deployment_id: UUID
    ktpm: int
    at: datetime | None


@dataclass(frozen=True, slots=True)
class ProgramRoute:
    """Write the endpoint's route; `routed` remembers for what."""

    routed: str


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Take the endpoint's route away."""


Action = Reserve | PlaceHold | CloseHold | Apply | DeleteWorkload | Probe | Meter | ProgramRoute | RemoveRoute


@dataclass(frozen=True, slots=True)
class Decision:
    """`actions` in order; the status as it stands without them; `retry_s` None: wait for facts or intent."""

    actions: tuple[Action, ...]
    conditions: tuple[Condition, ...]
    finalizers: tuple[Finalizer, ...]
    serving: int
    retry_s: int | None

    @property
    def archived(self) -> bool:
        """Nothing is left to undo."""
        return not self.finalizers


def decide(row: EndpointRow) -> Decision:
    """What to do next for one endpoint, and its status."""
    if row.deleting:
        return _dismantle(row)
    routed = f"{row.generation}:{row.stop or 'run'}"
    actions = [*_route(row, routed)]
    for deployment in row.deployments:
        actions.extend(_advance(row, deployment))
    status = status_of(row, routed)
    return Decision(tuple(actions), status, tuple(Finalizer), row.serving, _retry_s(row, actions, status))


def _route(row: EndpointRow, routed: str) -> Iterator[Action]:
    """Of an endpoint that nobody can describe any more, what the gateways know stays until it stops."""
    if not any(isinstance(item.workload, Absent) for item in row.deployments):
        if row.routed != routed:
            yield ProgramRoute(routed)
    elif row.routed and row.stop:
        yield RemoveRoute()


def _runnable(row: EndpointRow, deployment: DeploymentRow) -> int:
    """Replicas that may run: wanted, paid for, and with accelerators reserved."""
    if deployment.paid and not deployment.held:
        return 0
    return min(row.wanted(deployment), deployment.reserved // deployment.accelerators)


def _advance(row: EndpointRow, deployment: DeploymentRow) -> Iterator[Action]:
    wanted = row.wanted(deployment)
    if isinstance(deployment.workload, Absent):
        # What runs and serves is left alone: a catalogue that forgot an entry ends nobody's engines.
        if not wanted:
            yield from _take_down(deployment)
        return
    if deployment.paid and not deployment.held and wanted:
        yield PlaceHold(deployment.id)
    run = _runnable(row, deployment)
    spec = replace(deployment.workload, generation=row.generation, replicas=run)
    is_update = bool(run and deployment.pods) and _runs_something_else(deployment, spec)
    share = _share(deployment, wanted, is_update=is_update)
    if share != deployment.reserved:
        yield Reserve(deployment.id, share)
    if is_update and share > deployment.reserved:
        # Its accelerators come first: applied without them, an update ends an old replica before a new one is ready.
        return
    if run or deployment.applied:
        has_spare = deployment.reserved >= (run + 1) * deployment.accelerators
        yield from _apply(deployment, replace(spec, surge=is_update and has_spare))
    for item in deployment.replicas:
        if wanted and not item.proven and item.pod_uid in deployment.open_pods:
            yield Probe(deployment.id, item.pod_uid)
    if deployment.held and not wanted and deployment.is_empty:
        yield CloseHold(deployment.id)


def _runs_something_else(deployment: DeploymentRow, spec: WorkloadSpec) -> bool:
    """Whether a pod that is to go on was made by another template."""
    spec_hash = deployment_objects(spec, deployment.pool)[0]["metadata"]["labels"][SPEC_HASH_LABEL]
    return any(pod.spec_hash != spec_hash and not pod.terminating for pod in deployment.pods)


def _share(deployment: DeploymentRow, wanted: int, *, is_update: bool) -> int:
    """Accelerators to hold: what is wanted, and never less than what pods still sit on.

    While an update replaces replicas, one replica's more, where the pool has them.
    """
    needed = wanted * deployment.accelerators
    if is_update and (deployment.reserved > needed or deployment.pool_free >= deployment.accelerators):
        needed += deployment.accelerators
    if deployment.reserved <= needed:
        return needed
    if not deployment.applied:
        return needed
    if not deployment.fresh:
        return deployment.reserved
    return min(deployment.reserved, max(needed, len(deployment.pods) * deployment.accelerators))


def _apply(deployment: DeploymentRow, spec: WorkloadSpec) -> Iterator[Action]:
    objects = deployment_objects(spec, deployment.pool)
    manifests = json.dumps(tenant_objects(deployment.tenant, deployment.region) + objects, sort_keys=True)
    digest = hashlib.sha256(manifests.encode()).hexdigest()
    if deployment.applied != digest or (
        (deployment.fresh or deployment.heard) and _drifted(deployment, spec, objects[0])
    ):
        yield Apply(deployment.id, digest, manifests)


def _drifted(deployment: DeploymentRow, spec: WorkloadSpec, manifest: Object) -> bool:
    """The cluster holds something else than what it accepted, or a field of ours has become another's."""
    seen = deployment.seen
    if seen is None:
        return True
    spec_hash = manifest["metadata"]["labels"][SPEC_HASH_LABEL]
    wanted = (spec.generation, spec.replicas, spec_hash, deployment.owned)
    return (seen.generation, seen.replicas, seen.spec_hash, seen.owned) != wanted


def _dismantle(row: EndpointRow) -> Decision:
    """The way down: route, workload, metering, hold; each finalizer stands until its facts say so."""
    actions: list[Action] = []
    if row.routed:
        actions.append(RemoveRoute())
    for deployment in row.deployments:
        actions.extend(_take_down(deployment))
    left = {
        Finalizer.ROUTE: bool(row.routed),
        Finalizer.WORKLOAD: not all(item.is_gone and not item.reserved for item in row.deployments),
        Finalizer.METERING: any(item.replicas for item in row.deployments),
        Finalizer.HOLD: any(item.held for item in row.deployments),
    }
    return going_down(actions, left, row.serving)


def going_down(actions: Iterable[Action], left: Mapping[Finalizer, bool], serving: int) -> Decision:
    """The decision about an endpoint that is being deleted: what is `left` to undo keeps it."""
    actions, finalizers = tuple(actions), tuple(name for name, stands in left.items() if stands)
    message = f"still to undo: {', '.join(finalizers)}" if finalizers else "everything is undone"
    status = tuple(Condition(name, c.FALSE, c.DELETING, message) for name in c.TYPES)
    retry_s = (_ACTION_RETRY_S if actions else _WATCH_RETRY_S) if finalizers else None
    return Decision(actions, status, finalizers, serving, retry_s)


def _take_down(deployment: DeploymentRow) -> Iterator[Action]:
    back = deployment.fresh and deployment.seen is not None and deployment.seen.generation > 0
    if deployment.applied and (deployment.applied != DELETED or back):
        yield DeleteWorkload(deployment.id)
    if not deployment.is_gone:
        return
    if deployment.reserved:
        yield Reserve(deployment.id, 0)
    if deployment.held and not deployment.replicas:
        yield CloseHold(deployment.id)


def _retry_s(row: EndpointRow, actions: list[Action], status: tuple[Condition, ...]) -> int | None:
    if any(isinstance(item, Probe) for item in actions):
        return _PROBE_RETRY_S
    if actions:
        return _WATCH_RETRY_S if all(isinstance(item, Reserve) for item in actions) else _ACTION_RETRY_S
    if any(item.told and item.in_doubt for item in row.deployments):
        return _DOUBT_RETRY_S
    if all(item.status == c.TRUE for item in status):
        return _ACTION_RETRY_S if any(item.in_doubt for item in row.deployments) else None
    if not any(row.wanted(item) for item in row.deployments) and all(item.is_empty for item in row.deployments):
        return None
    return _WATCH_RETRY_S
