"""The conditions of an endpoint from its rows and facts: one small function per condition. Pure."""

from inference.core import conditions as c
from inference.core.conditions import Condition
from inference.core.rows import Absent, DeploymentRow, EndpointRow, Fault
from k8s.desired import WorkloadSpec
from k8s.observe import NODE_LOST

SUSPENDED_SENTENCE = "The tenant's money is used up: top up, and it runs again by itself."


def status_of(row: EndpointRow, routed: str) -> tuple[Condition, ...]:
    """All conditions of an endpoint that is to stay; `routed` is what its route should say."""
    route = (
        Condition(c.ROUTE_PROGRAMMED, c.TRUE, "Programmed")
        if row.routed == routed
        else Condition(c.ROUTE_PROGRAMMED, c.FALSE, "Pending", "the gateways do not know this generation yet")
    )
    deployment = row.deployments[0]
    if not row.wanted(deployment):
        return _stopped(row, deployment, route)
    parts = (
        _accepted(deployment),
        _capacity(row, deployment),
        _weights(deployment),
        _scheduled(deployment),
        _engine(deployment),
        route,
    )
    return (*parts, _ready(row, deployment, parts))


def _stopped(row: EndpointRow, deployment: DeploymentRow, route: Condition) -> tuple[Condition, ...]:
    empty = deployment.is_empty
    reason = row.stop or c.SCALED_TO_ZERO
    if reason == c.PAUSED and not empty:
        reason = c.PAUSING
    left = len(deployment.pods)
    message = SUSPENDED_SENTENCE if reason == c.SUSPENDED else ""
    if not empty:
        message = f"{message} {left} pods are still finishing their requests.".lstrip()
    middle = tuple(Condition(name, c.FALSE, reason) for name in c.TYPES[1:5])
    return (_accepted(deployment), *middle, route, Condition(c.READY, c.FALSE, reason, message))


def _accepted(deployment: DeploymentRow) -> Condition:
    if isinstance(deployment.workload, Absent):
        return Condition(c.ACCEPTED, c.FALSE, c.NOT_IN_CATALOGUE, deployment.workload.sentence)
    if deployment.fault is not None and deployment.fault.reason == "ManifestRefused":
        return Condition(c.ACCEPTED, c.FALSE, deployment.fault.reason, deployment.fault.message)
    return Condition(c.ACCEPTED, c.TRUE, "Placed", f"on pool {deployment.pool.name}")


def _capacity(row: EndpointRow, deployment: DeploymentRow) -> Condition:
    if deployment.paid and not deployment.held:
        fault = deployment.fault or Fault("HoldPending", "the money is about to be reserved")
        return Condition(c.CAPACITY_RESERVED, c.FALSE, fault.reason, fault.message)
    if deployment.fault is not None and deployment.fault.reason in c.SCARCE:
        return Condition(c.CAPACITY_RESERVED, c.FALSE, deployment.fault.reason, deployment.fault.message)
    needed = row.wanted(deployment) * deployment.accelerators
    if deployment.reserved >= needed:
        return Condition(c.CAPACITY_RESERVED, c.TRUE, "Reserved", f"{needed} accelerators of {deployment.pool.name}")
    if isinstance(deployment.workload, WorkloadSpec) and deployment.workload.nodes > 1:
        more = (needed - deployment.reserved) // deployment.accelerators * deployment.workload.nodes
        sentence = (
            f"{more} whole nodes of pool {deployment.pool.name} are needed at once; free now: {deployment.nodes_free}"
        )
        return Condition(c.CAPACITY_RESERVED, c.FALSE, "NoRoom", sentence)
    free, more = max(0, deployment.pool_free), needed - deployment.reserved
    sentence = f"pool {deployment.pool.name} has {free} accelerators free and {more} more are needed"
    return Condition(c.CAPACITY_RESERVED, c.FALSE, "NoRoom", sentence)


def _weights(deployment: DeploymentRow) -> Condition:
    if deployment.weights_known:
        return Condition(c.WEIGHTS_CACHED, c.TRUE, "OnPool")
    if any(pod.ready for pod in deployment.pods):
        return Condition(c.WEIGHTS_CACHED, c.TRUE, "Loaded")
    return Condition(c.WEIGHTS_CACHED, c.UNKNOWN, "NotReported", "known once an engine has loaded them")


def _scheduled(deployment: DeploymentRow) -> Condition:
    pods = deployment.pods
    stuck = next((pod for pod in pods if pod.reason in c.SCARCE), None)
    if stuck is not None:
        return Condition(c.SCHEDULED, c.FALSE, stuck.reason, stuck.message)
    if any(pod.node for pod in pods):
        return Condition(c.SCHEDULED, c.TRUE, "Scheduled")
    if deployment.seen is not None and deployment.seen.reason in c.SCARCE:
        return Condition(c.SCHEDULED, c.FALSE, deployment.seen.reason, deployment.seen.message)
    if deployment.fault is not None:
        return Condition(c.SCHEDULED, c.UNKNOWN, deployment.fault.reason, deployment.fault.message)
    return Condition(c.SCHEDULED, c.UNKNOWN, "NoPodYet", "the cluster has made no pod yet")


def _engine(deployment: DeploymentRow) -> Condition:
    pods = deployment.pods
    ready = sum(pod.ready for pod in pods)
    if ready:
        return Condition(c.ENGINE_READY, c.TRUE, "Answering", f"{ready} engines answer")
    ill = next((pod for pod in pods if pod.reason in c.LASTING), None)
    if ill is not None:
        return Condition(c.ENGINE_READY, c.FALSE, ill.reason, ill.message)
    seen = deployment.seen
    if seen is not None and seen.reason in c.LASTING:
        return Condition(c.ENGINE_READY, c.FALSE, seen.reason, seen.message)
    if pods:
        return Condition(c.ENGINE_READY, c.UNKNOWN, pods[0].reason or "Starting", pods[0].message)
    return Condition(c.ENGINE_READY, c.UNKNOWN, "NoPodYet", "")


def _ready(row: EndpointRow, deployment: DeploymentRow, parts: tuple[Condition, ...]) -> Condition:
    serving = row.serving
    wanted = row.wanted(deployment)
    before = next((item for item in row.conditions if item.type == c.READY), None)
    count = f"{serving} of {wanted} replicas serve"
    if deployment.seen is not None and deployment.seen.reason == NODE_LOST:
        count = f"{count}; {deployment.seen.message}"
    elif deployment.fault is not None:
        count = f"{count}; {deployment.fault.message}"
    accepted = parts[0]
    if accepted.status == c.FALSE:
        # Engines of what was accepted before go on; nothing newer can be had.
        status, reason = (c.TRUE, c.UPDATE_FAILED) if serving else (c.FALSE, accepted.reason)
        return Condition(c.READY, status, reason, accepted.message)
    if serving:
        return Condition(c.READY, c.TRUE, _serving_reason(row, deployment, before, serving >= wanted), count)
    if before is not None and before.reason in {c.SCALED_TO_ZERO, c.WAKING}:
        return Condition(c.READY, c.FALSE, c.WAKING, count)
    if before is not None and before.reason in {c.SERVING, c.DEGRADED, c.RECOVERING}:
        return Condition(c.READY, c.FALSE, c.RECOVERING, count)
    blocking = next((item for item in parts if item.status != c.TRUE), None)
    if blocking is None:
        return Condition(c.READY, c.FALSE, "Proving", "the first answer has not come through the gateway yet")
    return Condition(c.READY, c.FALSE, blocking.reason, blocking.message)


def _serving_reason(row: EndpointRow, deployment: DeploymentRow, before: Condition | None, full: bool) -> str:
    settled = deployment.seen is not None and deployment.seen.settled
    if full and settled:
        return c.SERVING
    seen = deployment.seen
    changing = seen is not None and any(pod.spec_hash != seen.spec_hash for pod in seen.pods)
    if before is not None:
        changing |= before.reason in {c.UPDATING, c.UPDATE_FAILED}
        changing |= before.status == c.TRUE and row.observed_generation != row.generation
    if not changing:
        return c.SERVING if full else c.DEGRADED
    ill = any(pod.reason in c.LASTING for pod in deployment.pods)
    return c.UPDATE_FAILED if ill else c.UPDATING
