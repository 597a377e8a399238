"""A cluster in memory for drills: it counts writes, loses what it is told to lose, and moves when told."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from k8s.cluster import Applied, Change, Object, Ref, Snapshot, UnreachableError
from k8s.desired import DEPLOYMENT_LABEL
from k8s.local.rollout import instant, new_pod, plan
from k8s.ownership import owned

# Every pod has been ready for an hour as soon as it is.
BEGAN = datetime(2026, 11, 24, 12, tzinfo=UTC)


class ScriptedCluster:
    """Implements `Cluster`; `step` does what controllers and a node would do, by the local cluster's own rules."""

    def __init__(self) -> None:
        self.objects: dict[Ref, Object] = {}
        self.pods: dict[Ref, Object] = {}
        self.writes = 0
        self.fault = None
        self.is_silent = False
        node = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node-1"}}
        self.nodes = ({**node, "status": {"conditions": [{"type": "Ready", "status": "True"}]}},)
        self._ips = itertools.count(1)

    def apply(self, objects: Iterable[Object]) -> Sequence[Applied]:
        """Store each; with `fault` set, refuse all of them."""
        results = []
        for item in objects:
            ref = Ref.of(item)
            if self.fault is None and self.objects.get(ref) != item:
                self.objects[ref] = copy.deepcopy(item)
                self.writes += 1
            results.append(Applied(ref, self.fault, owned(item)))
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
        everything = (tuple(self.objects.values()), tuple(self.pods.values()), self.nodes)
        return Snapshot(*copy.deepcopy(everything), "1")

    def changes(self, since: str, *, timeout_s: float = 60.0) -> Iterator[Change]:
        """Nothing: the drills list."""
        yield from ()

    def log(self, pod: Ref, lines: int) -> str:
        """Nothing was printed."""
        return ""

    def step(self, *, ready: bool = True, broken: str = "") -> None:
        """Pods that are to end are gone, missing ones exist, all are ready (or none); `broken` is an image that
        ends by itself.
        """
        for ref in [ref for ref, pod in self.pods.items() if "deletionTimestamp" in pod["metadata"]]:
            del self.pods[ref]
        for item in self.objects.values():
            if item["kind"] == "Deployment":
                self._roll(item)
        for pod in self.pods.values():
            self._set_state(pod, ready=ready, ended=pod["spec"]["containers"][0]["image"] == broken)

    def kill_pods(self) -> None:
        """All pods vanish without a word."""
        self.pods.clear()

    def _roll(self, item: Object) -> None:
        name, namespace = item["metadata"]["name"], item["metadata"]["namespace"]
        own = {ref: pod for ref, pod in self.pods.items() if ref.namespace == namespace and ref.name.startswith(name)}
        planned = plan(item, list(own.values()), BEGAN + timedelta(hours=1))
        for pod in planned.end:
            del self.pods[Ref.of(pod)]
        for _ in range(planned.create):
            uid = str(uuid4())
            owner = {**item, "metadata": {**item["metadata"], "uid": name}}
            pod = new_pod(owner, uid=uid, suffix=uid[-5:], now=BEGAN)
            pod["spec"] = {**pod["spec"], "nodeName": "node-1"}
            pod["status"] = {"phase": "Running", "podIP": f"127.9.9.{next(self._ips)}"}
            self.pods[Ref.of(pod)] = pod

    def _set_state(self, pod: Object, *, ready: bool, ended: bool) -> None:
        ready = ready and not ended
        state = {"terminated": {"exitCode": 1}} if ended else {"running": {"startedAt": instant(BEGAN)}}
        pod["status"]["conditions"] = [
            {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": instant(BEGAN)}
        ]
        pod["status"]["containerStatuses"] = [
            {"name": "engine", "ready": ready, "started": ready, "restartCount": 0, "state": state}
        ]
