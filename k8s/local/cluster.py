"""`Cluster` on the files of one ROOT. Any process may use it; it needs nothing of the agent's memory."""

import copy
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from k8s.cluster import (
    Applied,
    Change,
    Conflict,
    Invalid,
    Object,
    Ref,
    Retry,
    Snapshot,
    UnreachableError,
)
from k8s.local import admission, logfile
from k8s.local.rollout import condition, ended, instant
from k8s.local.runner import pod_folder
from k8s.local.store import BrokenFileError, Store, Transaction
from k8s.ownership import SERVER_METADATA, decided, owned

AGENT_LOCK = "agent.lock"

_POLL_S = 0.1
_RETRY_S = 5.0
_LOST_AFTER_S = 40.0


class LocalCluster:
    """The embedded cluster of one machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._store = Store(root)

    def apply(self, objects: Iterable[Object]) -> Sequence[Applied]:
        """As Cluster.apply. What this machine cannot run is Invalid, by the field's name."""
        wanted = list(objects)
        results: list[Applied] = []
        try:
            with self._store.transaction() as turn:
                results.extend(_apply(turn, item) for item in wanted)
        except (OSError, BrokenFileError) as error:
            fault = Retry(_RETRY_S, str(error))
            return [Applied(_ref(item), fault) for item in wanted]
        return results

    def delete(self, refs: Iterable[Ref], *, grace_s: int | None) -> None:
        """As Cluster.delete; the agent ends the pods, now or when it next runs."""
        try:
            with self._store.transaction() as turn:
                for ref in refs:
                    _delete(turn, ref, grace_s)
        except (OSError, BrokenFileError) as error:
            raise UnreachableError(str(error)) from error

    def list(self) -> Snapshot:
        """As Cluster.list. The node is lost when no agent gave a sign for forty seconds."""
        try:
            items, version = self._store.snapshot()
        except (OSError, BrokenFileError) as error:
            raise UnreachableError(str(error)) from error
        own = copy.deepcopy(list(items.values()))
        return Snapshot(
            objects=tuple(item for item in own if item["kind"] not in ("Pod", "Node")),
            pods=tuple(item for item in own if item["kind"] == "Pod"),
            nodes=tuple(self._with_condition(item) for item in own if item["kind"] == "Node"),
            version=str(version),
        )

    def changes(self, since: str, *, timeout_s: float = 60.0) -> Iterator[Change]:
        """As Cluster.changes, at most 100 ms late."""
        seen, end_at = int(since), time.monotonic() + timeout_s
        try:
            while time.monotonic() < end_at:
                version = self._store.version()
                if version != seen:
                    batch = self._store.since(seen)
                    if batch is None:
                        return
                    *others, last = copy.deepcopy(batch)
                    yield from (replace(change, more=True) for change in others)
                    yield last
                    seen = version
                time.sleep(_POLL_S)
        except (OSError, BrokenFileError) as error:
            raise UnreachableError(str(error)) from error

    def log(self, pod: Ref, lines: int) -> str:
        """As Cluster.log; the log goes with the pod."""
        try:
            items, _ = self._store.snapshot()
            item = items.get(pod)
            return logfile.tail(pod_folder(self._root, item["metadata"]["uid"]) / "log", lines) if item else ""
        except (OSError, BrokenFileError) as error:
            raise UnreachableError(str(error)) from error

    def _with_condition(self, node: Object) -> Object:
        try:
            age_s = time.time() - (self._root / AGENT_LOCK).stat().st_mtime
        except FileNotFoundError:
            age_s = _LOST_AFTER_S
        now, alive = datetime.now(UTC), age_s < _LOST_AFTER_S
        ready = condition({}, "Ready", alive, "KubeletReady", "NodeStatusUnknown", now)
        if not alive:
            ready |= {"status": "Unknown", "message": "the agent of this machine does not run"}
        return {**node, "status": {**node["status"], "conditions": [ready]}}


def _apply(turn: Transaction, item: Object) -> Applied:
    ref = _ref(item)
    try:
        item = json.loads(json.dumps(item))
    except TypeError as error:
        return Applied(ref, Invalid(f"{ref} is not JSON: {error}"))
    fault = admission.refusal(item) or admission.missing_namespace(item, turn.items)
    if fault:
        return Applied(ref, Invalid(f"{ref}: {fault}"))
    current = turn.items.get(ref)
    if current is None:
        meta = {"uid": str(uuid4()), "creationTimestamp": instant(datetime.now(UTC)), "generation": 1}
        turn.put({**item, "metadata": item["metadata"] | meta})
        return Applied(ref, owned=owned(item))
    return _update(turn, ref, current, item)


def _ref(item: Object) -> Ref:
    """The name, also of a manifest that lacks parts of it."""
    meta = item.get("metadata", {})
    texts = (item.get("apiVersion"), item.get("kind"), meta.get("namespace", ""), meta.get("name"))
    return Ref(*(str(text) for text in texts))


def _update(turn: Transaction, ref: Ref, current: Object, item: Object) -> Applied:
    meta, known = item["metadata"], current["metadata"]
    for key in ("uid", "resourceVersion"):
        if key in meta and meta[key] != known[key]:
            return Applied(ref, Conflict(f"{ref}: {key} is {known[key]}, not {meta[key]}"))
    body, known_body = decided(item), decided(current)
    if body == known_body:
        return Applied(ref, owned=owned(current))
    spec, known_spec = body.get("spec", {}), known_body.get("spec", {})
    if ref.kind == "Deployment" and spec["selector"] != known_spec["selector"]:
        return Applied(ref, Invalid(f"{ref}: spec.selector may not change"))
    server = {key: known[key] for key in SERVER_METADATA if key in known}
    server["generation"] += spec != known_spec
    fresh = {**body, "metadata": body["metadata"] | server}
    if "status" in current:
        fresh["status"] = current["status"]
    turn.put(fresh)
    return Applied(ref, owned=owned(fresh))


def _delete(turn: Transaction, ref: Ref, grace_s: int | None) -> None:
    item = turn.items.get(ref)
    if item is None:
        return
    now = datetime.now(UTC)
    for hanging in list(turn.items.values()):
        if hanging["kind"] == "Pod" and _hangs_on(hanging, item):
            order = ended(hanging, grace_s=grace_s, now=now)
            if order != hanging:
                turn.put(order)
        elif ref.kind == "Namespace" and hanging["metadata"].get("namespace") == ref.name:
            turn.drop(Ref.of(hanging))
    if ref.kind != "Pod":
        turn.drop(ref)


def _hangs_on(pod: Object, item: Object) -> bool:
    """Whether the pod is, is owned by, or lives in what is deleted."""
    meta, target = pod["metadata"], item["metadata"]
    owners = {owner["uid"] for owner in meta.get("ownerReferences", [])}
    in_namespace = item["kind"] == "Namespace" and meta["namespace"] == target["name"]
    return meta["uid"] == target["uid"] or target["uid"] in owners or in_namespace
