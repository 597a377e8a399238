"""Raw objects to facts: what runs, what is ready, and why not, in words that a tenant understands. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from k8s.cluster import Object, Ref, Snapshot
from k8s.desired import DEPLOYMENT_LABEL, GENERATION_LABEL, ROLE_LABEL, SPEC_HASH_LABEL
from k8s.ownership import combined, owned
from kernel import ids

RUNNING = "Running"
STARTING = "Starting"
TERMINATING = "Terminating"
UNSCHEDULABLE = "Unschedulable"
IMAGE_PULL_FAILED = "ImagePullFailed"
START_FAILED = "StartFailed"
OUT_OF_MEMORY = "OutOfMemory"
CRASH_LOOP = "CrashLoop"
PROBE_FAILED = "ProbeFailed"
EVICTED = "Evicted"
NODE_LOST = "NodeLost"
QUOTA_EXCEEDED = "QuotaExceeded"
REFUSED = "Refused"

_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_START_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"}
_INSUFFICIENT = re.compile(r"Insufficient ([A-Za-z0-9./-]*[A-Za-z0-9])")
_LINE_CHARS = 300
# Kubernetes keeps such a pod, and a name that is fixed, as long as nobody can say that its engine has ended.
_UNTIL = "Its pod stays until the node answers, is taken out of the cluster or is marked out-of-service."
_REPLACED = "Kubernetes replaces it once it has been silent for a while."
_HELD = "So many nodes are silent that Kubernetes replaces nothing until they answer or are taken out of the cluster."
# Its node lifecycle controller's defaults: more than so many silent nodes of a zone, and such a share of a small one.
_FEW_NODES, _MAJORITY, _SMALL_ZONE = 2, 0.55, 50
_ZONE_LABELS = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone")
_WORKLOADS = ("Deployment", "LeaderWorkerSet")
# How LeaderWorkerSet marks the pods of one group.
_GROUP_LABEL, _SIZE_ANNOTATION = "leaderworkerset.sigs.k8s.io/group-index", "leaderworkerset.sigs.k8s.io/size"


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """One replica: a pod, or the leader of a group, who is ready while all of the group are.

    `address` is "ip:port", or "" before it has one; `spec_hash` tells which template it runs.

    `reason` is one of this module's CamelCase names, `message` its sentence. `terminating` pods are on
    their way out and take no new requests.
    """

    uid: str
    name: str
    address: str
    ready: bool
    phase: str
    reason: str
    message: str
    started_at: datetime | None
    restarts: int
    spec_hash: str
    node: str
    terminating: bool


@dataclass(frozen=True, slots=True)
class Observed:
    """One deployment: `generation` and `spec_hash` as last applied, `replicas` wanted, `ready` now.

    `settled` says that the cluster has acted on the last apply: every wanted replica runs it and is ready,
    and no other pod is left. `reason` and `message` tell what keeps it from that ("" when nothing does).
    `owned` stands for the fields that are ours of its objects and its namespace's, as `combined` has it.
    Pods whose Deployment is gone stand under generation 0 until the last of them has ended.
    """

    deployment_id: UUID
    generation: int
    spec_hash: str
    replicas: int
    ready: int
    settled: bool
    reason: str
    message: str
    pods: tuple[ObservedPod, ...]
    owned: str = ""


def deployment_id_of(item: Object) -> UUID | None:
    """The deployment whose label an object bears; None without one, or with one that is none of ours."""
    label = item["metadata"].get("labels", {}).get(DEPLOYMENT_LABEL)
    try:
        return ids.decode(ids.DEPLOYMENT, label) if label else None
    except ValueError:
        return None


def observe(snapshot: Snapshot) -> dict[UUID, Observed]:
    """Facts by deployment id, of all deployments that have an object or a pod in the snapshot."""
    silent = _silence(snapshot.nodes)
    groups: dict[tuple[UUID, str], list[Object]] = defaultdict(list)
    for pod in snapshot.pods:
        if deployment_id := deployment_id_of(pod):
            group = pod["metadata"]["labels"].get(_GROUP_LABEL, pod["metadata"]["uid"])
            groups[deployment_id, group].append(pod)
    pods: dict[UUID, list[ObservedPod]] = defaultdict(list)
    for (deployment_id, _), members in groups.items():
        pods[deployment_id].append(_observe_group(members, silent))
    deployments = {
        deployment_id: item
        for item in snapshot.objects
        if item["kind"] in _WORKLOADS and (deployment_id := deployment_id_of(item))
    }
    ours = _owned(snapshot.objects)
    return {
        deployment_id: _observe_deployment(
            deployment_id,
            deployments.get(deployment_id),
            tuple(sorted(pods[deployment_id], key=lambda pod: pod.name)),
            ours,
        )
        for deployment_id in sorted({*deployments, *pods})
    }


def _owned(objects: Iterable[Object]) -> dict[tuple[str, UUID | None], dict[Ref, str]]:
    """Digests of objects by their namespace and deployment; under None those that all of a tenant's share."""
    found: dict[tuple[str, UUID | None], dict[Ref, str]] = defaultdict(dict)
    for item in objects:
        ref = Ref.of(item)
        found[ref.namespace or ref.name, deployment_id_of(item)][ref] = owned(item)
    return found


def _observe_deployment(
    deployment_id: UUID,
    item: Object | None,
    pods: tuple[ObservedPod, ...],
    ours: Mapping[tuple[str, UUID | None], dict[Ref, str]],
) -> Observed:
    ready = sum(pod.ready and not pod.terminating for pod in pods)
    if item is None:
        return Observed(deployment_id, 0, "", 0, ready, not pods, *_whole_reason(None, pods), pods)
    labels, status = item["metadata"]["labels"], item.get("status", {})
    replicas, spec_hash = item["spec"]["replicas"], labels.get(SPEC_HASH_LABEL, "")
    namespace = item["metadata"]["namespace"]
    settled = (
        status.get("observedGeneration", 0) >= item["metadata"].get("generation", 0)
        and len(pods) == replicas
        and all(pod.ready and not pod.terminating and pod.spec_hash == spec_hash for pod in pods)
    )
    return Observed(
        deployment_id,
        int(labels.get(GENERATION_LABEL, 0)),
        spec_hash,
        replicas,
        ready,
        settled,
        *_whole_reason(item, pods),
        pods,
        combined(ours.get((namespace, None), {}) | ours[namespace, deployment_id]),
    )


def _whole_reason(item: Object | None, pods: Iterable[ObservedPod]) -> tuple[str, str]:
    """A refusal to create pods outweighs what a pod says; among pods one that is to stay speaks first."""
    failure = _condition(item or {}, "ReplicaFailure")
    if failure:
        text = failure.get("message", "")
        if "exceeded quota" in text:
            return QUOTA_EXCEEDED, f"The quota of this region is used up: {_short(text)}"
        return REFUSED, f"The cluster refuses the engine's pod: {_short(text)}"
    waiting = [pod for pod in pods if not pod.ready or pod.terminating]
    first = min(waiting, key=lambda pod: (pod.terminating, pod.reason == STARTING, pod.name), default=None)
    return (first.reason, first.message) if first else ("", "")


def _silence(nodes: Iterable[Object]) -> dict[str, str]:
    """By each node's name what its silence means for a pod on it, "" where it is not silent.

    Kubernetes takes a silent majority of a small zone, or of everything, for its own fault and evicts nobody.
    """
    zones: dict[tuple[str, ...], list[Object]] = defaultdict(list)
    for node in nodes:
        labels = node["metadata"].get("labels", {})
        zones[tuple(labels.get(label, "") for label in _ZONE_LABELS)].append(node)
    down = {zone: sum(not _condition(node, "Ready") for node in there) for zone, there in zones.items()}
    all_down = all(down[zone] == len(there) for zone, there in zones.items())
    words: dict[str, str] = {}
    for zone, there in zones.items():
        partly = _FEW_NODES < down[zone] < len(there) <= _SMALL_ZONE and down[zone] >= _MAJORITY * len(there)
        sentence = _HELD if partly or all_down else _REPLACED
        words |= {node["metadata"]["name"]: "" if _condition(node, "Ready") else sentence for node in there}
    return words


def _observe_group(members: list[Object], silent: Mapping[str, str]) -> ObservedPod:
    """The replica that pods make up together: its leader, who is as well as the worst of them."""
    members.sort(key=lambda pod: (pod["metadata"]["labels"].get(ROLE_LABEL) == "worker", pod["metadata"]["name"]))
    leader, *others = (_observe_pod(pod, silent) for pod in members)
    if not leader.ready or leader.terminating:
        worse = next((pod for pod in others if pod.reason not in (RUNNING, STARTING)), leader)
        told = worse if leader.reason == STARTING else leader
        return replace(leader, reason=told.reason, message=told.message)
    ill = next((pod for pod in others if not pod.ready or pod.terminating), None)
    if ill is not None:
        return replace(leader, ready=False, reason=ill.reason, message=ill.message)
    if len(members) < int(members[0]["metadata"].get("annotations", {}).get(_SIZE_ANNOTATION, 1)):
        return replace(leader, ready=False, reason=STARTING, message="The replica waits for its other nodes.")
    return leader


def _observe_pod(pod: Object, silent: Mapping[str, str]) -> ObservedPod:
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    node = spec.get("nodeName", "")
    container: dict[str, Any] = next(iter(status.get("containerStatuses", [])), {})
    lost = silent.get(node, _REPLACED) if node else ""
    reason, message = _pod_reason(pod, container, lost=lost)
    running = container.get("state", {}).get("running", {})
    ports = spec["containers"][0].get("ports", [])
    started = running.get("startedAt") or status.get("startTime")
    return ObservedPod(
        uid=meta["uid"],
        name=meta["name"],
        address=f"{_host(status['podIP'])}:{ports[0]['containerPort']}" if status.get("podIP") and ports else "",
        ready=not lost and bool(_condition(pod, "Ready")),
        phase=status.get("phase", "Pending"),
        reason=reason,
        message=message,
        started_at=datetime.fromisoformat(started) if started else None,
        restarts=container.get("restartCount", 0),
        spec_hash=meta.get("labels", {}).get(SPEC_HASH_LABEL, ""),
        node=node,
        terminating="deletionTimestamp" in meta,
    )


def _pod_reason(pod: Object, container: dict[str, Any], *, lost: str) -> tuple[str, str]:
    """`lost` says what becomes of a pod whose node is silent."""
    status = pod.get("status", {})
    if status.get("reason") == "Evicted":
        return EVICTED, f"The node ended this replica: {_short(status.get('message', ''))}"
    if lost and "deletionTimestamp" in pod["metadata"]:
        return NODE_LOST, f"The node that ran this replica does not answer. {_UNTIL}"
    if lost:
        return NODE_LOST, f"The node that runs this replica does not answer. {lost}"
    if "deletionTimestamp" in pod["metadata"]:
        return TERMINATING, "The replica finishes its requests and ends."
    scheduled: dict[str, Any] = next((c for c in status.get("conditions", []) if c["type"] == "PodScheduled"), {})
    if scheduled.get("status") == "False":
        return UNSCHEDULABLE, _scarcity(scheduled.get("message", ""))
    since = next((c.get("lastTransitionTime", "") for c in status.get("conditions", []) if c["type"] == "Ready"), "")
    return _container_reason(container, unready_since=since)


def _container_reason(container: dict[str, Any], *, unready_since: str) -> tuple[str, str]:
    state, restarts = container.get("state", {}), container.get("restartCount", 0)
    ended = state.get("terminated") or container.get("lastState", {}).get("terminated")
    waiting = state.get("waiting", {})
    text = _short(waiting.get("message", ""))
    if waiting.get("reason") in _IMAGE_REASONS:
        return IMAGE_PULL_FAILED, f"The engine's image cannot be had: {text}"
    if waiting.get("reason") in _START_REASONS:
        return START_FAILED, f"The engine cannot be started: {text}"
    if "running" in state:
        return _running_reason(container, ended, unready_since)
    if ended and ended.get("reason") == "OOMKilled":
        return OUT_OF_MEMORY, f"The engine ran out of memory and is started again (restart {restarts})."
    if ended:
        return CRASH_LOOP, f"The engine ended by itself ({restarts} restarts): {_ending(ended)}"
    return STARTING, "The replica is being prepared."


def _running_reason(container: dict[str, Any], ended: dict[str, Any] | None, unready_since: str) -> tuple[str, str]:
    """An engine that is up but was not ready yet since its start waits for its first check, no more."""
    if container.get("ready"):
        return RUNNING, ""
    if container.get("started") and unready_since > container["state"]["running"].get("startedAt", ""):
        return PROBE_FAILED, "The engine runs but does not answer its health check."
    if ended:
        return STARTING, f"The engine starts again; it ended before: {_ending(ended)}"
    return STARTING, "The engine loads the model."


def _ending(ended: dict[str, Any]) -> str:
    """How an engine ended: its last printed line where there is one, its exit code else."""
    lines = [line.strip() for line in ended.get("message", "").splitlines() if line.strip()]
    if lines:
        return _short(lines[-1])
    return "out of memory." if ended.get("reason") == "OOMKilled" else f"exit code {ended.get('exitCode')}."


def _scarcity(text: str) -> str:
    """The scheduler's message for people: which resource is short, accelerators before CPU and memory."""
    names = sorted(set(_INSUFFICIENT.findall(text)), key=lambda name: ("/" not in name, name))
    if names:
        return f"No node has room: not enough {', '.join(names)} is free. It starts when some is."
    if "selector" in text or "taint" in text:
        return "No node of this pool is in service."
    return f"No node takes this replica: {_short(text)}"


def _condition(item: Object, kind: str) -> dict[str, Any]:
    """The condition of that type if it holds, else nothing."""
    conditions = item.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), {})


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _short(text: str) -> str:
    return text if len(text) <= _LINE_CHARS else text[: _LINE_CHARS - 1] + "…"
