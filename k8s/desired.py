"""Specs to manifests: what a tenant's namespace and an engine's Deployment look like, decided here alone.

Pure: the same input gives the same bytes, names and hashes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from k8s.cluster import Object, Ref
from kernel import ids

DOMAIN = "moorage.dev"
TENANT_LABEL = f"{DOMAIN}/tenant"
ENDPOINT_LABEL = f"{DOMAIN}/endpoint"
DEPLOYMENT_LABEL = f"{DOMAIN}/deployment"
GENERATION_LABEL = f"{DOMAIN}/generation"
SPEC_HASH_LABEL = f"{DOMAIN}/spec-hash"
REGION_LABEL = f"{DOMAIN}/region"
POOL_LABEL = f"{DOMAIN}/pool"

CONTAINER = "engine"
SERVICE_ACCOUNT = "engine"
SCRATCH = "/scratch"

_USER_ID = 10001
_GRACE_MARGIN_S = 20
_IMAGE_PULL_S = 1800
_RESERVED_FLAGS = ("--host", "--port", "--shutdown-timeout")
_RESERVED_ENV = ("POD_IP", "HOME", "VLLM_ENGINE_READY_TIMEOUT_S")
_VISIBLE_DEVICES = ("_VISIBLE_DEVICES", "_VISIBLE_MODULES")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """One deployment of an endpoint: `replicas` engines of one recipe.

    `args` are what follows `command`: the model, then the recipe's flags; address, port and shutdown flags
    are added here. `generation` marks the Deployment alone, so that scaling restarts no engine.
    `drains_itself` is False for engines without `--shutdown-timeout`; a preStop loop then waits for
    their running requests. `surge` starts the new engine before the old one ends, which needs free cards.
    """

    tenant_id: UUID
    endpoint_id: UUID
    deployment_id: UUID
    generation: int
    replicas: int
    image: str
    args: tuple[str, ...]
    cpu_millis: int
    memory_bytes: int
    command: tuple[str, ...] = ("vllm", "serve")
    env: Mapping[str, str] = field(default_factory=dict)
    served_port: int = 8000
    accelerator_count: int = 0
    shm_bytes: int = 64 << 20
    startup_budget_s: int = 900
    startup_period_s: int = 10
    shutdown_timeout_s: int = 30
    pre_stop_s: int = 5
    drains_itself: bool = True
    surge: bool = False

    @property
    def grace_s(self) -> int:
        """Seconds between the delete and the kill: routing away, draining, and a margin to exit in."""
        return self.pre_stop_s + self.shutdown_timeout_s + _GRACE_MARGIN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBinding:
    """How one node pool names what an engine needs; none of it follows from the chip's name.

    `arch` is Kubernetes' word (amd64, arm64). `weights_volume` is a volume source of a kind that
    `restricted` allows, mounted read-only at `weights_mount`. `lost_after_s`: how long a pod of a silent
    node is waited for.
    """

    name: str
    arch: str
    resource_name: str | None = None
    runtime_class: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    weights_volume: Mapping[str, Any] | None = None
    weights_mount: str = "/weights"
    lost_after_s: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionBinding:
    """What a region's cluster calls the two parties that engines talk to.

    `weights_cidr` None: weights come by volume, and engines reach DNS alone.
    """

    name: str
    gateway_namespace: str = "moorage-gateway"
    weights_cidr: str | None = None
    weights_port: int = 443


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSpec:
    """What one tenant may take of one region: pods, and accelerators by resource name."""

    tenant_id: UUID
    pods: int
    accelerators: Mapping[str, int] = field(default_factory=dict)


def namespace_of(tenant_id: UUID) -> str:
    """The namespace that holds one tenant's engines."""
    return _dns(ids.encode(ids.TENANT, tenant_id))


def name_of(deployment_id: UUID) -> str:
    """The name of a deployment's objects."""
    return _dns(ids.encode(ids.DEPLOYMENT, deployment_id))


def deployment_refs(tenant_id: UUID, deployment_id: UUID) -> tuple[Ref, ...]:
    """Every object that a deployment may own in any generation: what to delete, and what to prune from."""
    namespace, name = namespace_of(tenant_id), name_of(deployment_id)
    return (
        Ref("apps/v1", "Deployment", namespace, name),
        Ref("policy/v1", "PodDisruptionBudget", namespace, name),
    )


def tenant_objects(tenant: TenantSpec, region: RegionBinding) -> list[Object]:
    """What a tenant has once per region: fenced namespace, quota, network policy, powerless account."""
    namespace = namespace_of(tenant.tenant_id)
    labels = {TENANT_LABEL: ids.encode(ids.TENANT, tenant.tenant_id), REGION_LABEL: region.name}
    fence = {
        f"pod-security.kubernetes.io/{mode}{suffix}": value
        for mode in ("enforce", "audit", "warn")
        for suffix, value in (("", "restricted"), ("-version", "latest"))
    }
    hard = {"pods": str(tenant.pods), "services.loadbalancers": "0", "services.nodeports": "0"}
    hard |= {f"requests.{name}": str(count) for name, count in sorted(tenant.accelerators.items())}
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": labels | fence},
        },
        _named("v1", "ResourceQuota", namespace, "tenant", labels) | {"spec": {"hard": hard}},
        _named("networking.k8s.io/v1", "NetworkPolicy", namespace, "engines", labels)
        | {"spec": _network_rules(region)},
        _named("v1", "ServiceAccount", namespace, SERVICE_ACCOUNT, labels) | {"automountServiceAccountToken": False},
    ]


def deployment_objects(spec: WorkloadSpec, pool: PoolBinding) -> list[Object]:
    """One deployment's manifests: the Deployment, and a disruption budget where more than one replica runs.

    ValueError names a flag or variable that only this module may set.
    """
    _refuse_reserved(spec, pool)
    namespace, name = namespace_of(spec.tenant_id), name_of(spec.deployment_id)
    labels = {
        TENANT_LABEL: ids.encode(ids.TENANT, spec.tenant_id),
        ENDPOINT_LABEL: ids.encode(ids.ENDPOINT, spec.endpoint_id),
        DEPLOYMENT_LABEL: ids.encode(ids.DEPLOYMENT, spec.deployment_id),
        POOL_LABEL: pool.name,
    }
    selector = {"matchLabels": {DEPLOYMENT_LABEL: labels[DEPLOYMENT_LABEL]}}
    pod = _pod_spec(spec, pool)
    marked = labels | {SPEC_HASH_LABEL: _spec_hash({"labels": labels, "spec": pod})}
    deployment = _named("apps/v1", "Deployment", namespace, name, marked | {GENERATION_LABEL: str(spec.generation)})
    deployment["spec"] = {
        "replicas": spec.replicas,
        "selector": selector,
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": spec.startup_budget_s + _IMAGE_PULL_S,
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": int(spec.surge), "maxUnavailable": int(not spec.surge)},
        },
        "template": {"metadata": {"labels": marked}, "spec": pod},
    }
    if spec.replicas <= 1:
        return [deployment]
    budget = _named("policy/v1", "PodDisruptionBudget", namespace, name, labels)
    budget["spec"] = {"maxUnavailable": 1, "selector": selector}
    return [deployment, budget]


def _dns(label: str) -> str:
    return label.replace("_", "-")


def _named(api_version: str, kind: str, namespace: str, name: str, labels: Mapping[str, str]) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def _spec_hash(template: Mapping[str, Any]) -> str:
    canonical = json.dumps(template, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _refuse_reserved(spec: WorkloadSpec, pool: PoolBinding) -> None:
    for flag in _RESERVED_FLAGS:
        if any(arg == flag or arg.startswith(f"{flag}=") for arg in spec.args):
            raise ValueError(f"args may not carry {flag}: the manifest sets it")
    for name in spec.env:
        if name in _RESERVED_ENV:
            raise ValueError(f"env may not carry {name}: the manifest sets it")
        if pool.resource_name and name.endswith(_VISIBLE_DEVICES):
            raise ValueError(f"env may not carry {name}: the device plugin of {pool.resource_name} sets it")


def _network_rules(region: RegionBinding) -> dict[str, Any]:
    """Denied both ways but for what is listed: in from the gateway, out to DNS and the weight store."""
    by_name = "kubernetes.io/metadata.name"
    egress: list[dict[str, Any]] = [
        {
            "to": [
                {
                    "namespaceSelector": {"matchLabels": {by_name: "kube-system"}},
                    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                }
            ],
            "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
        }
    ]
    if region.weights_cidr:
        egress.append(
            {
                "to": [{"ipBlock": {"cidr": region.weights_cidr}}],
                "ports": [{"protocol": "TCP", "port": region.weights_port}],
            }
        )
    gateway = {"namespaceSelector": {"matchLabels": {by_name: region.gateway_namespace}}}
    return {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [gateway]}],
        "egress": egress,
    }


def _pod_spec(spec: WorkloadSpec, pool: PoolBinding) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _quantity(spec.shm_bytes)}},
        {"name": "scratch", "emptyDir": {}},
    ]
    if pool.weights_volume is not None:
        volumes.append({"name": "weights", **pool.weights_volume})
    body: dict[str, Any] = {
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.grace_s,
        "nodeSelector": dict(sorted({"kubernetes.io/arch": pool.arch, **pool.node_selector}.items())),
        "tolerations": [dict(item) for item in pool.tolerations]
        + [
            {
                "key": f"node.kubernetes.io/{state}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": pool.lost_after_s,
            }
            for state in ("not-ready", "unreachable")
        ],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, pool)],
        "volumes": volumes,
    }
    if pool.runtime_class:
        body["runtimeClassName"] = pool.runtime_class
    return body


def _container(spec: WorkloadSpec, pool: PoolBinding) -> dict[str, Any]:
    args = [*spec.args, "--host", "$(POD_IP)", "--port", str(spec.served_port)]
    if spec.drains_itself:
        args += ["--shutdown-timeout", str(spec.shutdown_timeout_s)]
    mounts: list[dict[str, Any]] = [
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  a mount point inside the container
        {"name": "scratch", "mountPath": SCRATCH},
    ]
    if pool.weights_volume is not None:
        mounts.append({"name": "weights", "mountPath": pool.weights_mount, "readOnly": True})
    return {
        "name": CONTAINER,
        "image": spec.image,
        "command": list(spec.command),
        "args": args,
        "env": _env(spec),
        "ports": [{"name": "http", "containerPort": spec.served_port}],
        "resources": _resources(spec, pool),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        # The startup budget is also the engine's own: neither gives up while the other still waits.
        "startupProbe": _probe(
            period_s=spec.startup_period_s,
            timeout_s=5,
            failures=-(-spec.startup_budget_s // spec.startup_period_s),
        ),
        "readinessProbe": _probe(period_s=5, timeout_s=5, failures=3),
        "livenessProbe": _probe(period_s=15, timeout_s=10, failures=6),
        "lifecycle": {"preStop": _pre_stop(spec)},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _env(spec: WorkloadSpec) -> list[dict[str, Any]]:
    """POD_IP comes first: later values and the args may refer to it as $(POD_IP)."""
    pod_ip = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    own = {"HOME": SCRATCH, "VLLM_ENGINE_READY_TIMEOUT_S": str(spec.startup_budget_s)}
    return [pod_ip, *({"name": name, "value": value} for name, value in sorted({**spec.env, **own}.items()))]


def _resources(spec: WorkloadSpec, pool: PoolBinding) -> dict[str, Any]:
    """CPU may burst, memory may not; shared memory counts against the pod's memory."""
    memory = {"memory": _quantity(spec.memory_bytes + spec.shm_bytes)}
    if pool.resource_name and spec.accelerator_count:
        memory[pool.resource_name] = str(spec.accelerator_count)
    whole, rest = divmod(spec.cpu_millis, 1000)
    return {"requests": {"cpu": f"{spec.cpu_millis}m" if rest else str(whole), **memory}, "limits": memory}


def _quantity(size_bytes: int) -> str:
    """Bytes as Kubernetes writes them: whole Mi where it is whole, plain bytes else."""
    whole, rest = divmod(size_bytes, 1 << 20)
    return str(size_bytes) if rest else f"{whole}Mi"


def _probe(*, period_s: int, timeout_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def _pre_stop(spec: WorkloadSpec) -> dict[str, Any]:
    """Before SIGTERM: time to route away, and for an engine that cannot drain by itself, the draining."""
    if spec.drains_itself:
        return {"sleep": {"seconds": spec.pre_stop_s}}
    wait = _WAIT_UNTIL_IDLE.format(pre_stop_s=spec.pre_stop_s, budget_s=spec.shutdown_timeout_s, port=spec.served_port)
    return {"exec": {"command": ["python3", "-c", wait]}}


_WAIT_UNTIL_IDLE = """\
import os, time, urllib.request
time.sleep({pre_stop_s})
end = time.monotonic() + {budget_s}
while time.monotonic() < end:
    host = os.environ["POD_IP"]
    host = f"[{{host}}]" if ":" in host else host
    text = urllib.request.urlopen(f"http://{{host}}:{port}/metrics", timeout=5).read().decode()
    busy = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    if not any(float(row.split()[-1]) for row in text.splitlines() if row.startswith(busy)):
        break
    time.sleep(1)
"""
