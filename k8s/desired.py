"""Specs to manifests: what a tenant's namespace and a deployment's objects look like, decided here alone.

Pure: the same input gives the same bytes, names and hashes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from k8s.cluster import Object, Ref
from k8s.engine_pod import SERVICE_ACCOUNT, PoolBinding, WorkloadSpec, pod_spec, refuse_reserved
from kernel import ids

__all__ = [
    "PoolBinding",
    "RegionBinding",
    "TenantSpec",
    "WorkloadSpec",
    "deployment_objects",
    "deployment_refs",
    "name_of",
    "namespace_of",
    "sized_refs",
    "tenant_objects",
]

DOMAIN = "moorage.dev"
TENANT_LABEL = f"{DOMAIN}/tenant"
ENDPOINT_LABEL = f"{DOMAIN}/endpoint"
DEPLOYMENT_LABEL = f"{DOMAIN}/deployment"
GENERATION_LABEL = f"{DOMAIN}/generation"
SPEC_HASH_LABEL = f"{DOMAIN}/spec-hash"
REGION_LABEL = f"{DOMAIN}/region"
POOL_LABEL = f"{DOMAIN}/pool"

ROLE_LABEL = f"{DOMAIN}/role"
GROUPS = "leaderworkerset.x-k8s.io/v1"

_IMAGE_PULL_S = 1800
# An engine that answers its checks still has to prove itself by a token through the gateway: so long an old one stays.
_PROVING_S = 15


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
    """Every object that a deployment may own in any generation: what to delete."""
    namespace, name = namespace_of(tenant_id), name_of(deployment_id)
    return (
        Ref("apps/v1", "Deployment", namespace, name),
        Ref(GROUPS, "LeaderWorkerSet", namespace, name),
        Ref("v1", "Service", namespace, _leaders(name)),
        Ref("networking.k8s.io/v1", "NetworkPolicy", namespace, _ranks(name)),
        *sized_refs(tenant_id, deployment_id),
    )


def sized_refs(tenant_id: UUID, deployment_id: UUID) -> tuple[Ref, ...]:
    """Those of them that come and go with the number of replicas: what to prune."""
    return (Ref("policy/v1", "PodDisruptionBudget", namespace_of(tenant_id), name_of(deployment_id)),)


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
    """One deployment's manifests, first that of its pods: a Deployment, or a LeaderWorkerSet with a Service of its
    leaders and a network policy among its ranks where an engine spans nodes. A disruption budget where more than
    one replica runs.

    ValueError names a flag or variable that only these manifests may set.
    """
    refuse_reserved(spec, pool)
    labels = {
        TENANT_LABEL: ids.encode(ids.TENANT, spec.tenant_id),
        ENDPOINT_LABEL: ids.encode(ids.ENDPOINT, spec.endpoint_id),
        DEPLOYMENT_LABEL: ids.encode(ids.DEPLOYMENT, spec.deployment_id),
        POOL_LABEL: pool.name,
    }
    objects = _groups(spec, pool, labels) if spec.nodes > 1 else [_deployment(spec, pool, labels)]
    if spec.replicas > 1:
        namespace, name = namespace_of(spec.tenant_id), name_of(spec.deployment_id)
        budget = _named("policy/v1", "PodDisruptionBudget", namespace, name, labels)
        objects.append(budget | {"spec": {"maxUnavailable": 1, "selector": _selector(labels)}})
    return objects


def _deployment(spec: WorkloadSpec, pool: PoolBinding, labels: Mapping[str, str]) -> Object:
    pod = pod_spec(spec, pool)
    marked = {**labels, SPEC_HASH_LABEL: _spec_hash({"labels": labels, "spec": pod})}
    return _workload("apps/v1", "Deployment", spec, marked) | {
        "spec": {
            "replicas": spec.replicas,
            "selector": _selector(labels),
            "revisionHistoryLimit": 2,
            "minReadySeconds": _PROVING_S,
            "progressDeadlineSeconds": spec.startup_budget_s + _IMAGE_PULL_S,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": _rolling(spec)},
            "template": {"metadata": {"labels": marked}, "spec": pod},
        }
    }


def _groups(spec: WorkloadSpec, pool: PoolBinding, labels: Mapping[str, str]) -> list[Object]:
    """Engines that span nodes: each is one group, which starts together and, if any of it ends, starts anew."""
    namespace, name = namespace_of(spec.tenant_id), name_of(spec.deployment_id)
    pods = {role: pod_spec(spec, pool, role) for role in ("leader", "worker")}
    template = {"labels": labels, "size": spec.nodes, **pods}
    marked = {**labels, SPEC_HASH_LABEL: _spec_hash(template)}
    leading = {DEPLOYMENT_LABEL: labels[DEPLOYMENT_LABEL], ROLE_LABEL: "leader"}
    among = [{"podSelector": _selector(labels)}]
    group = {
        "size": spec.nodes,
        "restartPolicy": "RecreateGroupOnPodRestart",
        **{
            f"{role}Template": {"metadata": {"labels": {**marked, ROLE_LABEL: role}}, "spec": pod}
            for role, pod in pods.items()
        },
    }
    return [
        _workload(GROUPS, "LeaderWorkerSet", spec, marked)
        | {
            "spec": {
                "replicas": spec.replicas,
                # A leader is ready only once its workers have joined: they may not wait for that.
                "startupPolicy": "LeaderCreated",
                "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": _rolling(spec)},
                "leaderWorkerTemplate": group,
            }
        },
        _named("v1", "Service", namespace, _leaders(name), labels)
        | {"spec": {"selector": leading, "ports": [{"name": "http", "port": spec.served_port, "targetPort": "http"}]}},
        # What ranks say to each other is neither encrypted nor asked who it is.
        _named("networking.k8s.io/v1", "NetworkPolicy", namespace, _ranks(name), labels)
        | {
            "spec": {
                "podSelector": _selector(labels),
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": among}],
                "egress": [{"to": among}],
            }
        },
    ]


def _workload(api_version: str, kind: str, spec: WorkloadSpec, marked: Mapping[str, str]) -> Object:
    labels = {**marked, GENERATION_LABEL: str(spec.generation)}
    return _named(api_version, kind, namespace_of(spec.tenant_id), name_of(spec.deployment_id), labels)


def _rolling(spec: WorkloadSpec) -> dict[str, int]:
    return {"maxSurge": int(spec.surge), "maxUnavailable": int(not spec.surge)}


def _selector(labels: Mapping[str, str]) -> dict[str, Any]:
    return {"matchLabels": {DEPLOYMENT_LABEL: labels[DEPLOYMENT_LABEL]}}


def _leaders(name: str) -> str:
    # The set's own name is taken by the Service that its controller makes for the ranks' addresses.
    return f"{name}-leader"


def _ranks(name: str) -> str:
    return f"{name}-ranks"


def _dns(label: str) -> str:
    return label.replace("_", "-")


def _named(api_version: str, kind: str, namespace: str, name: str, labels: Mapping[str, str]) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def _spec_hash(template: Mapping[str, Any]) -> str:
    canonical = json.dumps(template, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


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
