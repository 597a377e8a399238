"""From a Deployment to its pods: which to create, which to end, and what its status says. Pure."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from k8s.cluster import Object

TEMPLATE_HASH_LABEL = "pod-template-hash"


@dataclass(frozen=True, slots=True)
class Plan:
    """How many pods of the present template to create, and which pods to end."""

    create: int
    end: tuple[Object, ...]


def plan(deployment: Object, pods: Sequence[Object], now: datetime) -> Plan:
    """The next step towards the Deployment, by its strategy; the empty Plan when it is reached."""
    spec, current = deployment["spec"], template_hash(deployment)
    replicas = spec.get("replicas", 1)
    live = [pod for pod in pods if not is_terminating(pod)]
    new = [pod for pod in live if pod["metadata"]["labels"].get(TEMPLATE_HASH_LABEL) == current]
    old = [pod for pod in live if pod not in new]
    if spec.get("strategy", {}).get("type") == "Recreate" and len(new) < len(pods):
        return Plan(0, tuple(old))
    rolling = spec.get("strategy", {}).get("rollingUpdate", {})
    surge, floor = rolling.get("maxSurge", 1), replicas - rolling.get("maxUnavailable", 0)
    surplus = sorted(new, key=_end_first)[: max(0, len(new) - replicas)]
    create = max(0, min(replicas - len(new), replicas + surge - len(live)))
    available = sum(is_available(deployment, pod, now) for pod in new if pod not in surplus)
    return Plan(create, (*surplus, *_end_old(old, available, floor)))


def _end_old(old: Sequence[Object], available: int, floor: int) -> list[Object]:
    """Old pods to end so that `floor` pods stay with the new that are available; those that are not ready go first."""
    spare = len(old) + available - floor
    return sorted(old, key=_end_first)[: max(0, spare)]


def _end_first(pod: Object) -> tuple[bool, bool, str]:
    """Order in which pods are given up: not placed, not ready, then the youngest last; stable by name."""
    return is_ready(pod), "nodeName" in pod["spec"], pod["metadata"]["name"]


def new_pod(deployment: Object, *, uid: str, suffix: str, now: datetime) -> Object:
    """A pod of the Deployment's present template, owned by it."""
    meta, template = deployment["metadata"], deployment["spec"]["template"]
    mark = template_hash(deployment)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{meta['name']}-{mark}-{suffix}",
            "namespace": meta["namespace"],
            "uid": uid,
            "creationTimestamp": instant(now),
            "labels": {**template["metadata"]["labels"], TEMPLATE_HASH_LABEL: mark},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "Deployment",
                    "name": meta["name"],
                    "uid": meta["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    }


def ended(pod: Object, *, grace_s: int | None, now: datetime) -> Object:
    """The pod with its end ordered: killed at deletionTimestamp at the latest; a second order only shortens."""
    grace = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
    # Rounded up, as instants carry whole seconds: a grace is never cut short.
    end_at = instant(now + timedelta(seconds=grace + 1, microseconds=-1))
    meta = pod["metadata"]
    if is_terminating(pod) and meta["deletionTimestamp"] <= end_at:
        return pod
    mark = {"deletionTimestamp": end_at, "deletionGracePeriodSeconds": grace}
    return {**pod, "metadata": {**meta, **mark}}


def deployment_status(deployment: Object, pods: Sequence[Object], now: datetime) -> dict[str, Any]:
    """The Deployment's status in Kubernetes' words, from the pods it has."""
    replicas, mark = deployment["spec"].get("replicas", 1), template_hash(deployment)
    live = [pod for pod in pods if not is_terminating(pod)]
    ready = sum(is_ready(pod) for pod in live)
    lasting = sum(is_available(deployment, pod, now) for pod in live)
    updated = sum(pod["metadata"]["labels"].get(TEMPLATE_HASH_LABEL) == mark for pod in live)
    floor = replicas - deployment["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable", 0)
    before = deployment.get("status", {})
    available = condition(
        before, "Available", lasting >= floor, "MinimumReplicasAvailable", "MinimumReplicasUnavailable", now
    )
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": len(live),
        "updatedReplicas": updated,
        "readyReplicas": ready,
        "availableReplicas": lasting,
        "unavailableReplicas": max(0, replicas - lasting),
        "conditions": [available],
    }


def condition(
    before: dict[str, Any], kind: str, holds: bool, yes: str, no: str, now: datetime, message: str = ""
) -> dict[str, Any]:
    """A condition with reason `yes` or `no`; its transition time moves only when its status does."""
    status = "True" if holds else "False"
    known: dict[str, Any] = next((item for item in before.get("conditions", []) if item["type"] == kind), {})
    since = known["lastTransitionTime"] if known.get("status") == status else instant(now)
    body = {"type": kind, "status": status, "lastTransitionTime": since}
    if reason := yes if holds else no:
        body["reason"] = reason
    return body | ({"message": message} if message else {})


def template_hash(deployment: Object) -> str:
    """Ten characters that stand for the pod template."""
    text = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def is_terminating(pod: Object) -> bool:
    """Whether the pod's end is ordered."""
    return "deletionTimestamp" in pod["metadata"]


def is_ready(pod: Object) -> bool:
    """Whether the pod's Ready condition holds."""
    return _ready_since(pod) is not None


def is_available(deployment: Object, pod: Object, now: datetime) -> bool:
    """Whether the pod has been ready for as long as its Deployment wants before it counts on it."""
    since = _ready_since(pod)
    wanted = timedelta(seconds=deployment["spec"].get("minReadySeconds", 0))
    return since is not None and datetime.fromisoformat(since) + wanted <= now


def _ready_since(pod: Object) -> str | None:
    conditions = pod.get("status", {}).get("conditions", [])
    holds = (item["lastTransitionTime"] for item in conditions if (item["type"], item["status"]) == ("Ready", "True"))
    return next(holds, None)


def instant(at: datetime) -> str:
    """An aware UTC instant as Kubernetes writes it, to the second."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
