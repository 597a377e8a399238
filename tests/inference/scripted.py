"""A cluster in memory for drills: it counts writes, loses what it is told to lose, and moves when told."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from uuid import uuid4

from k8s.cluster import Applied, Change, Object, Ref, Snapshot, UnreachableError
from k8s.desired import DEPLOYMENT_LABEL
from k8s.ownership import owned


class ScriptedCluster:
    """Implements `Cluster`; `step` does what controllers and a node would do."""

    def __init__(self) -> None:
        self.objects: dict[Ref, Object] = {}
        self.pods: dict[Ref, Object] = {}
        self.writes = 0
        self.fault = None
        self.is_silent = False
        self._ips = itertools.count(1)

    def apply(self, objects: Iterable[Object]) -> Sequence[Applied]:
        """Store each; with `fault` set, refuse all of them."""
        results = []
        for item in objects:
            ref = Ref.of(item)
            changed = self.objects.get(ref) != item
            if self.fault is None and changed:
                self.objects[ref] = copy.deepcopy(item)
                self.writes += 1
            results.append(Applied(ref, changed and self.fault is None, self.fault, owned(item)))
        return results

    def delete(self, refs: Iterable[Ref], *, grace_s: int | None) -> None:
        """Drop objects; their pods are on their way out until the next step."""
        for ref in refs:
            item = self.objects.pop(ref, None)
            if item is None:
                continue
            self.writes += 1
            for pod in self.pods.values():
                if pod["metadata"]["labels"].get(DEPLOYMENT_LABEL) == item["metadata"]["labels"].get(DEPLOYMENT_LABEL):
                    pod["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"

    def list(self) -> Snapshot:
        """Everything; UnreachableError while silent."""
        if self.is_silent:
            raise UnreachableError("nobody answers")
        node = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node-1"}}
        node["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
        everything = (tuple(self.objects.values()), tuple(self.pods.values()), (node,))
        return Snapshot(*copy.deepcopy(everything), "1")

    def changes(self, since: str, *, timeout_s: float = 60.0) -> Iterator[Change]:
        """Nothing: the drills list."""
        yield from ()

    def log(self, pod: Ref, lines: int) -> str:
        """Nothing was printed."""
        return ""

    def step(self, *, ready: bool = True) -> None:
        """Pods that are to end are gone, missing ones exist, all are ready (or none)."""
        for ref in [ref for ref, pod in self.pods.items() if "deletionTimestamp" in pod["metadata"]]:
            del self.pods[ref]
        for item in self.objects.values():
            if item["kind"] == "Deployment":
                self._fill(item)
        for pod in self.pods.values():
            self._set_ready(pod, ready)

    def kill_pods(self) -> None:
        """All pods vanish without a word."""
        self.pods.clear()

    def _fill(self, item: Object) -> None:
        namespace = item["metadata"]["namespace"]
        own = [ref for ref in self.pods if ref.namespace == namespace and ref.name.startswith(item["metadata"]["name"])]
        for ref in own[item["spec"]["replicas"] :]:
            del self.pods[ref]
        for _ in range(item["spec"]["replicas"] - len(own)):
            template, uid = item["spec"]["template"], str(uuid4())
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "namespace": namespace,
                    "name": f"{item['metadata']['name']}-{uid[-5:]}",
                    "uid": uid,
                    "labels": template["metadata"]["labels"],
                },
                "spec": {**template["spec"], "nodeName": "node-1"},
                "status": {"phase": "Running", "podIP": f"127.9.9.{next(self._ips)}"},
            }
            self.pods[Ref.of(pod)] = pod

    def _set_ready(self, pod: Object, ready: bool) -> None:
        state = {"running": {"startedAt": "2026-11-24T12:00:00Z"}}
        pod["status"]["conditions"] = [{"type": "Ready", "status": "True" if ready else "False"}]
        pod["status"]["containerStatuses"] = [
            {"name": "engine", "ready": ready, "started": ready, "restartCount": 0, "state": state}
        ]
