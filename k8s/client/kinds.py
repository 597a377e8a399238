"""The kinds of objects that Moorage deals with on an API server, and their paths there. Pure."""

from dataclasses import dataclass

from k8s.cluster import Ref
from k8s.desired import GROUPS, TENANT_LABEL


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind; `plural` is its name in paths. Of `foreign` kinds we read every object, not only our own.

    A cluster may lack an `optional` kind: it then has none of it.
    """

    api_version: str
    name: str
    plural: str
    namespaced: bool = True
    foreign: bool = False
    optional: bool = False

    @property
    def collection(self) -> str:
        """The path of all objects of the kind, in whichever namespace."""
        return f"{self._root}/{self.plural}"

    @property
    def selector(self) -> dict[str, str]:
        """The query that picks what we read of the kind."""
        return {} if self.foreign else {"labelSelector": TENANT_LABEL}

    def within(self, namespace: str) -> str:
        """The path of the kind's objects in one namespace."""
        return f"{self._root}/namespaces/{namespace}/{self.plural}"

    def path(self, ref: Ref) -> str:
        """The path of one object."""
        return f"{self.within(ref.namespace) if self.namespaced else self.collection}/{ref.name}"

    @property
    def _root(self) -> str:
        return f"/api/{self.api_version}" if self.api_version == "v1" else f"/apis/{self.api_version}"


POD = Kind("v1", "Pod", "pods")
NODE = Kind("v1", "Node", "nodes", namespaced=False, foreign=True)
NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
REPLICA_SET = Kind("apps/v1", "ReplicaSet", "replicasets")
LEADER_WORKER_SET = Kind(GROUPS, "LeaderWorkerSet", "leaderworkersets", optional=True)
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
OBJECTS = (
    NAMESPACE,
    Kind("v1", "ResourceQuota", "resourcequotas"),
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("v1", "Service", "services"),
    DEPLOYMENT,
    LEADER_WORKER_SET,
)
# Pods before nodes: a pod's node is then never missing from the list for being newer than it.
READ = (*OBJECTS, POD, NODE)


def kind_of(ref: Ref) -> Kind | None:
    """The kind that a name is of; None for one that Moorage does not deal with."""
    return next((kind for kind in READ if (kind.api_version, kind.name) == (ref.api_version, ref.kind)), None)
