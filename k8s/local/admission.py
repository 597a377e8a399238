"""What a manifest may say on this machine; anything else is refused by name. Pure.

Namespaces, quotas, network policies, service accounts, disruption budgets and security contexts are kept
as they are but not enforced: processes of one machine under one user cannot be fenced that way.
"""

import re
from collections.abc import Mapping
from typing import Any

from k8s.cluster import Object, Ref

IMAGE = re.compile(r"engine\.moorage\.local/([a-z0-9][a-z0-9._-]*):([A-Za-z0-9][A-Za-z0-9._-]*)")
FIELD_PATHS = ("status.podIP", "metadata.name", "metadata.namespace", "metadata.uid")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
_ANY = object()
_TEXTS = {"*": str}
_METADATA = {
    "name": str,
    "namespace": str,
    "labels": _TEXTS,
    "annotations": _TEXTS,
    "uid": str,
    "resourceVersion": str,
}
_PROBE = {
    "httpGet": {"path": str, "port": _ANY},
    "initialDelaySeconds": int,
    "periodSeconds": int,
    "timeoutSeconds": int,
    "successThreshold": int,
    "failureThreshold": int,
}
_CONTAINER = {
    "name": str,
    "image": str,
    "imagePullPolicy": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}],
    "ports": [{"name": str, "containerPort": int, "protocol": str}],
    "resources": {"requests": _TEXTS, "limits": _TEXTS},
    "securityContext": _ANY,
    "startupProbe": _PROBE,
    "readinessProbe": _PROBE,
    "livenessProbe": _PROBE,
    "lifecycle": {"preStop": {"sleep": {"seconds": int}}},
    "terminationMessagePolicy": str,
    "volumeMounts": [{"name": str, "mountPath": str}],
}
_POD = {
    "serviceAccountName": str,
    "automountServiceAccountToken": bool,
    "enableServiceLinks": bool,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": _TEXTS,
    "tolerations": _ANY,
    "securityContext": _ANY,
    "containers": [_CONTAINER],
    "volumes": [{"name": str, "emptyDir": {"medium": str, "sizeLimit": str}}],
}
_DEPLOYMENT = {
    "replicas": int,
    "selector": {"matchLabels": _TEXTS},
    "revisionHistoryLimit": int,
    "progressDeadlineSeconds": int,
    "minReadySeconds": int,
    "strategy": {"type": str, "rollingUpdate": {"maxSurge": int, "maxUnavailable": int}},
    "template": {"metadata": {"labels": _TEXTS, "annotations": _TEXTS}, "spec": _POD},
}
_BODIES: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("v1", "Namespace"): {"spec": _ANY},
    ("v1", "ResourceQuota"): {"spec": _ANY},
    ("v1", "ServiceAccount"): {"automountServiceAccountToken": bool},
    ("networking.k8s.io/v1", "NetworkPolicy"): {"spec": _ANY},
    ("policy/v1", "PodDisruptionBudget"): {"spec": _ANY},
    ("apps/v1", "Deployment"): {"spec": _DEPLOYMENT},
}


def refusal(item: Object) -> str | None:
    """Why this manifest cannot run here, or None."""
    body = _BODIES.get((item.get("apiVersion", ""), item.get("kind", "")))
    if body is None:
        known = ", ".join(kind for _, kind in _BODIES)
        return f"{item.get('apiVersion')} {item.get('kind')} is not known on this machine; known are {known}"
    unknown = _misfit(item, {"apiVersion": str, "kind": str, "metadata": _METADATA, **body}, "")
    if unknown:
        return unknown
    return _name_refusal(item) or (_deployment_refusal(item["spec"]) if item["kind"] == "Deployment" else None)


def _misfit(value: Any, shape: Any, path: str) -> str | None:
    """The first field of `value` that `shape` lacks, or that is of another type."""
    if shape is _ANY:
        return None
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{path} must be an object"
        for key, inner in value.items():
            where = f"{path}.{key}" if path else key
            if key not in shape and "*" not in shape:
                return f"{where} is not known on this machine"
            if found := _misfit(inner, shape.get(key, shape.get("*")), where):
                return found
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{path} must be a list"
        found_each = (_misfit(inner, shape[0], f"{path}[{index}]") for index, inner in enumerate(value))
        return next((found for found in found_each if found), None)
    # bool is an int to Python, not to Kubernetes.
    return None if type(value) is shape else f"{path} must be of type {shape.__name__}"


def _name_refusal(item: Object) -> str | None:
    """Names become file names: only Kubernetes' own alphabet passes."""
    meta = item.get("metadata", {})
    needed = ["name"] if item["kind"] == "Namespace" else ["name", "namespace"]
    for key in needed:
        if not _NAME.fullmatch(meta.get(key, "")):
            return f"metadata.{key} must be a DNS name, not {meta.get(key)!r}"
    if item["kind"] == "Namespace" and "namespace" in meta:
        return "metadata.namespace has no meaning for a Namespace"
    return None


def _deployment_refusal(spec: Mapping[str, Any]) -> str | None:
    template = spec.get("template", {})
    labels = template.get("metadata", {}).get("labels", {})
    selector = spec.get("selector", {}).get("matchLabels", {})
    rolling = spec.get("strategy", {}).get("rollingUpdate", {})
    if not selector or not selector.items() <= labels.items():
        return "spec.selector.matchLabels must be part of the template's labels"
    if spec.get("replicas", 1) < 0:
        return "spec.replicas must be 0 or more"
    if spec.get("strategy", {}).get("type", "RollingUpdate") not in ("RollingUpdate", "Recreate"):
        return "spec.strategy.type must be RollingUpdate or Recreate"
    if rolling.get("maxSurge", 1) <= 0 and rolling.get("maxUnavailable", 0) <= 0:
        return "spec.strategy.rollingUpdate: maxSurge and maxUnavailable may not both be 0"
    containers = template.get("spec", {}).get("containers", [])
    if len(containers) != 1:
        return "spec.template.spec.containers must be exactly one: a pod is one process group here"
    return _container_refusal(containers[0])


def _container_refusal(container: Mapping[str, Any]) -> str | None:
    where = "spec.template.spec.containers[0]"
    if not IMAGE.fullmatch(container.get("image", "")):
        return f"{where}.image must be engine.moorage.local/NAME:TAG here, not {container.get('image')!r}"
    if not container.get("command"):
        return f"{where}.command is needed: an environment has no entry point of its own"
    ports = container.get("ports", [])
    if len(ports) != 1:
        return f"{where}.ports must be exactly one"
    for variable in container.get("env", []):
        path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        if path is not None and path not in FIELD_PATHS:
            return f"{where}.env {variable['name']}: fieldPath {path} is not known on this machine"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container.get(kind)
        if probe and probe.get("httpGet", {}).get("port") not in (ports[0].get("name"), ports[0]["containerPort"]):
            return f"{where}.{kind}.httpGet.port must be the container's port"
    return None


def missing_namespace(item: Object, items: Mapping[Ref, Object]) -> str | None:
    """The namespace that the object wants to live in and that is not there."""
    namespace = item["metadata"].get("namespace")
    if namespace and Ref("v1", "Namespace", "", namespace) not in items:
        return f"namespace {namespace} does not exist: apply it first"
    return None
