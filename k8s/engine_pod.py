"""One engine's pod: what a recipe on a pool becomes, alone or as a rank of a group. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

CONTAINER = "engine"
SERVICE_ACCOUNT = "engine"
SCRATCH = "/scratch"
# What LeaderWorkerSet gives every rank of a group.
RANK, LEADER_ADDRESS = "$(LWS_WORKER_INDEX)", "$(LWS_LEADER_ADDRESS)"

Role = Literal["engine", "leader", "worker"]

_USER_ID = 10001
_GRACE_MARGIN_S = 20
_RESERVED_FLAGS = ("--host", "--port", "--shutdown-timeout")
_RESERVED_ENV = ("POD_IP", "HOME", "VLLM_ENGINE_READY_TIMEOUT_S")
_VISIBLE_DEVICES = ("_VISIBLE_DEVICES", "_VISIBLE_MODULES")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """One deployment of an endpoint: `replicas` engines of one recipe.

    `nodes` above 1: each engine is a group of that many pods, one per node, of which the first leads; the
    others get `worker_args` too, and all figures are of one pod.
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
    nodes: int = 1
    worker_args: tuple[str, ...] = ()

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


def refuse_reserved(spec: WorkloadSpec, pool: PoolBinding) -> None:
    """ValueError names a flag or variable that only this module may set."""
    for flag in _RESERVED_FLAGS:
        if any(arg == flag or arg.startswith(f"{flag}=") for arg in (*spec.args, *spec.worker_args)):
            raise ValueError(f"args may not carry {flag}: the manifest sets it")
    for name in spec.env:
        if name in _RESERVED_ENV:
            raise ValueError(f"env may not carry {name}: the manifest sets it")
        if pool.resource_name and name.endswith(_VISIBLE_DEVICES):
            raise ValueError(f"env may not carry {name}: the device plugin of {pool.resource_name} sets it")


def pod_spec(spec: WorkloadSpec, pool: PoolBinding, role: Role = "engine") -> dict[str, Any]:
    """The pod template's spec: an engine of its own, or the leader or a worker of a group."""
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
        "containers": [_container(spec, pool, role)],
        "volumes": volumes,
    }
    if pool.runtime_class:
        body["runtimeClassName"] = pool.runtime_class
    return body


def _container(spec: WorkloadSpec, pool: PoolBinding, role: Role) -> dict[str, Any]:
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
        "env": _env(spec, role),
        "resources": _resources(spec, pool),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        **(_headless(spec) if role == "worker" else _serving(spec)),
    }


def _serving(spec: WorkloadSpec) -> dict[str, Any]:
    """What only a container that answers HTTP has."""
    args = [*spec.args, "--host", "$(POD_IP)", "--port", str(spec.served_port)]
    if spec.drains_itself:
        args += ["--shutdown-timeout", str(spec.shutdown_timeout_s)]
    return {
        "args": args,
        "ports": [{"name": "http", "containerPort": spec.served_port}],
        # The startup budget is also the engine's own: neither gives up while the other still waits.
        "startupProbe": _probe(
            period_s=spec.startup_period_s,
            timeout_s=5,
            failures=-(-spec.startup_budget_s // spec.startup_period_s),
        ),
        "readinessProbe": _probe(period_s=5, timeout_s=5, failures=3),
        "livenessProbe": _probe(period_s=15, timeout_s=10, failures=6),
        "lifecycle": {"preStop": _pre_stop(spec)},
    }


def _headless(spec: WorkloadSpec) -> dict[str, Any]:
    """A worker answers nobody but its leader, and stays for as long as the leader may still finish requests."""
    stay_s = spec.pre_stop_s + spec.shutdown_timeout_s
    return {"args": [*spec.args, *spec.worker_args], "lifecycle": {"preStop": {"sleep": {"seconds": stay_s}}}}


def _env(spec: WorkloadSpec, role: Role) -> list[dict[str, Any]]:
    """POD_IP comes first: later values and the args may refer to it as $(POD_IP)."""
    pod_ip = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    own = {"HOME": SCRATCH, "VLLM_ENGINE_READY_TIMEOUT_S": str(spec.startup_budget_s)}
    if role != "engine":
        own["VLLM_HOST_IP"] = "$(POD_IP)"
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
