"""A place on a real control plane: Moorage's client, an administrator's hands, and nodes to run on."""

import json
from pathlib import Path

import yaml

import k8s.client
from k8s.client.cluster import KubernetesCluster
from k8s.client.connection import Connection, RefusedError
from k8s.desired import TENANT_LABEL, namespace_of
from tests.cluster.boot import USERS
from tests.cluster.nodes import MERGE, Nodes
from tests.k8s.harness import Place, until

RIGHTS = Path(k8s.client.__file__).parent / "rights.yaml"
RUNTIME_CLASSES = ("nvidia", "ascend", "mthreads")
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


def prepare(plane):
    """What an operator does once per cluster: rights for Moorage's account, the vendors' runtimes."""
    admin = Connection(plane.kubeconfig("admin"))
    role = yaml.safe_load(RIGHTS.read_text())
    admin.call("POST", f"{_RBAC}/clusterroles", body=role)
    binding = {
        "metadata": {"name": "moorage"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "moorage"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USERS["app"][0]}],
    }
    admin.call("POST", f"{_RBAC}/clusterrolebindings", body=binding)
    for name in RUNTIME_CLASSES:
        body = {"metadata": {"name": name}, "handler": name}
        admin.call("POST", "/apis/node.k8s.io/v1/runtimeclasses", body=body)


class Site(Place):
    """One test's share of a control plane."""

    def __init__(self, plane, root, engines, *, speed=10):
        self.plane = plane
        self.admin = Connection(plane.kubeconfig("admin"))
        self.cluster = KubernetesCluster(plane.kubeconfig("app"))
        self.nodes = Nodes(plane.kubeconfig("nodes"), root, engines, (plane.certificate, plane.key), speed=speed)

    def start(self, *machines):
        """Add nodes."""
        self.nodes.add(*machines)
        return self

    def close(self):
        """End every pod at once, and take the nodes away; a namespace would take five seconds to go."""
        for name in self._namespaces():
            for plural in ("deployments", "replicasets", "pods"):
                group = "api/v1" if plural == "pods" else "apis/apps/v1"
                query = {"gracePeriodSeconds": "0", "propagationPolicy": "Background"}
                self.admin.call("DELETE", f"/{group}/namespaces/{name}/{plural}", query=query)
        until(lambda: not self.cluster.list().pods)
        self.nodes.close()

    def _namespaces(self):
        ours = {"labelSelector": TENANT_LABEL}
        return [item["metadata"]["name"] for item in self.admin.call("GET", "/api/v1/namespaces", query=ours)["items"]]

    def stored(self, tenant_id, plural, name, group="apis/apps/v1"):
        """An object as the API server keeps it, with its field managers."""
        return self.admin.call("GET", self.path(tenant_id, plural, name, group))

    def patch(self, tenant_id, plural, name, body, group="apis/apps/v1"):
        """Somebody else's change."""
        return self.admin.call("PATCH", self.path(tenant_id, plural, name, group), body=body, content_type=MERGE)

    def path(self, tenant_id, plural, name, group="apis/apps/v1"):
        """The path of one object of a tenant."""
        return f"/{group}/namespaces/{namespace_of(tenant_id)}/{plural}/{name}"

    def refusal(self, *call, **what):
        """What the API server answers to a call that it must refuse."""
        try:
            answer = self.admin.call(*call, **what)
        except RefusedError as error:
            return error
        raise AssertionError(f"it was accepted: {json.dumps(answer)[:500]}")
