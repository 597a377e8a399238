"""`Cluster` on a real Kubernetes API server."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from k8s.client import kinds, rights
from k8s.client.connection import APPLY, Connection, RefusedError
from k8s.client.faults import RETRY_S, classify
from k8s.client.kinds import Kind
from k8s.client.watches import follow
from k8s.cluster import Applied, Change, Invalid, Object, Ref, Retry, SilentError, Snapshot, UnreachableError
from k8s.desired import DEPLOYMENT_LABEL
from k8s.ownership import FIELD_MANAGER, ours, owned

_ABSENT = 404
_CONFLICT = 409
# A pod that has not started, or whose log its node has put away, has printed nothing.
_NO_LOG = {400, 404}
_GROUP_SET_LABEL = "leaderworkerset.sigs.k8s.io/name"
# What makes a workload's pods, and the label by which it is known.
_MAKERS = {
    kinds.DEPLOYMENT: (kinds.REPLICA_SET, DEPLOYMENT_LABEL),
    kinds.LEADER_WORKER_SET: (kinds.STATEFUL_SET, _GROUP_SET_LABEL),
}


class KubernetesCluster:
    """One cluster, as the account of a kubeconfig may see and change it (`rights.yaml` is what it needs)."""

    def __init__(self, kubeconfig: Mapping[str, Any], *, context: str | None = None) -> None:
        """`kubeconfig` as parsed; `context` names one of its contexts. ValueError where it makes no sense."""
        self._connection = Connection(kubeconfig, context=context)
        self._nodes_at: tuple[str, dict[str, Object]] = ("", {})

    def apply(self, objects: Iterable[Object], *, dry_run: bool = False) -> Sequence[Applied]:
        """As Cluster.apply, by server-side apply: what others own beside our fields stays theirs.

        `dry_run` has the server check everything and keep nothing.
        """
        results: list[Applied] = []
        silence: Retry | None = None
        for item in objects:
            # Once nobody answered, asking for the rest would only add waiting to waiting.
            if silence is None:
                try:
                    results.append(self._apply(item, dry_run))
                    continue
                except UnreachableError as error:
                    silence = Retry(RETRY_S, str(error), silent=isinstance(error, SilentError))
            results.append(Applied(_ref(item), silence))
        return results

    def delete(self, refs: Iterable[Ref], *, grace_s: int | None) -> None:
        """As Cluster.delete; pods end after the call, as their nodes find time. A grace of 0 counts as 1."""
        for ref in refs:
            try:
                self._delete(ref, grace_s)
            except RefusedError as error:
                raise UnreachableError(f"{ref} cannot be deleted: {error}") from error

    def list(self) -> Snapshot:
        """As Cluster.list; each kind is listed once, whole. A kind that the cluster lacks has version ""."""
        items: dict[Kind, list[Object]] = {}
        versions: dict[Kind, str] = {}
        for kind in kinds.READ:
            try:
                found = self._connection.call("GET", kind.collection, query=kind.selector)
            except RefusedError as error:
                if not (kind.optional and error.status == _ABSENT):
                    raise UnreachableError(f"{kind.plural} cannot be listed: {error}") from error
                found = {"metadata": {"resourceVersion": ""}, "items": []}
            versions[kind] = found["metadata"]["resourceVersion"]
            items[kind] = [_plain(kind, item) for item in found["items"]]
        version = _encode(versions)
        nodes = items[kinds.NODE]
        self._nodes_at = (version, {item["metadata"]["name"]: _lasting(item) for item in nodes})
        return Snapshot(
            objects=tuple(item for kind in kinds.OBJECTS for item in items[kind]),
            pods=tuple(items[kinds.POD]),
            nodes=tuple(nodes),
            version=version,
        )

    def changes(self, since: str, *, timeout_s: float = 60.0) -> Iterator[Change]:
        """As Cluster.changes. A node's mere sign of life is no change."""
        versions = _decode(since)
        if versions is None:
            return
        listed_at, nodes = self._nodes_at
        known: dict[str, Object | None] = dict(nodes) if listed_at == since else {}
        there = {kind: version for kind, version in versions.items() if version}
        for events in follow(self._connection, there, timeout_s):
            found = []
            for kind, event in events:
                item = event["object"]
                versions[kind] = item["metadata"]["resourceVersion"]
                if event["type"] == "BOOKMARK":
                    continue
                gone = event["type"] == "DELETED"
                if kind is kinds.NODE:
                    name, now = item["metadata"]["name"], None if gone else _lasting(item)
                    if now is not None and known.get(name) == now:
                        continue
                    known[name] = now
                found.append(Change(_plain(kind, item), gone, _encode(versions), more=True))
            if found:
                yield from found[:-1]
                yield replace(found[-1], more=False)

    def log(self, pod: Ref, lines: int) -> str:
        """As Cluster.log; of the engine's last start alone."""
        try:
            return self._connection.text("GET", f"{kinds.POD.path(pod)}/log", query={"tailLines": str(lines)})
        except RefusedError as error:
            if error.status in _NO_LOG:
                return ""
            raise UnreachableError(f"the log of {pod} cannot be read: {error}") from error

    def missing_rights(self) -> Sequence[str]:
        """What `rights.yaml` asks for and the account may not do. UnreachableError where nobody can say."""
        try:
            return rights.missing(self._connection)
        except RefusedError as error:
            raise UnreachableError(f"the account's rights cannot be read: {error}") from error

    def identity(self) -> str:
        """The same by whichever address and account it is asked, and no other cluster's. May raise UnreachableError."""
        try:
            return str(self._connection.call("GET", f"{kinds.NAMESPACE.collection}/kube-system")["metadata"]["uid"])
        except RefusedError as error:
            raise UnreachableError(f"the namespace kube-system cannot be read: {error}") from error

    def _apply(self, item: Object, dry_run: bool) -> Applied:
        ref = _ref(item)
        kind = kinds.kind_of(ref)
        if kind is None:
            return Applied(ref, Invalid(f"{ref}: Moorage does not deal with {ref.api_version} {ref.kind}"))
        query = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        try:
            after = self._connection.call("PATCH", kind.path(ref), query=query, body=item, content_type=APPLY)
        except RefusedError as error:
            return Applied(ref, classify(error.status, error.message, error.retry_after_s))
        return Applied(ref, owned=owned(after))

    def _get(self, kind: Kind, ref: Ref) -> Object | None:
        try:
            return self._connection.call("GET", kind.path(ref))
        except RefusedError as error:
            if error.status == _ABSENT:
                return None
            raise

    def _delete(self, ref: Ref, grace_s: int | None) -> None:
        kind = kinds.kind_of(ref)
        if kind is None:
            raise ValueError(f"{ref}: Moorage does not deal with {ref.api_version} {ref.kind}")
        query = {"propagationPolicy": "Background"}
        # With 0 the server would forget the pod before its engine has ended.
        short = None if grace_s is None else {"gracePeriodSeconds": str(max(1, grace_s))}
        if kind is kinds.POD:
            self._remove(kind.path(ref), query | (short or {}))
            return
        owner = self._get(kind, ref) if short and kind in _MAKERS else None
        self._remove(kind.path(ref), query)
        if short and kind is kinds.NAMESPACE:
            self._remove(kinds.POD.within(ref.name), short)
        if short and owner is not None:
            maker, mark = _MAKERS[kind]
            known = owner["metadata"]["labels"] | {_GROUP_SET_LABEL: ref.name}
            # Before their pods, lest they make new ones.
            self._remove(maker.within(ref.namespace), query | {"labelSelector": f"{mark}={known[mark]}"})
            selector = {"labelSelector": f"{DEPLOYMENT_LABEL}={known[DEPLOYMENT_LABEL]}"}
            self._remove(kinds.POD.within(ref.namespace), short | selector)

    def _remove(self, path: str, query: Mapping[str, str]) -> None:
        """Delete what is at a path; what is not there, or already on its way out, is fine."""
        try:
            self._connection.call("DELETE", path, query=query)
        except RefusedError as error:
            if error.status not in (_ABSENT, _CONFLICT):
                raise


def _ref(item: Object) -> Ref:
    """The name, also of a manifest that lacks parts of it; the server says what they are."""
    meta = item.get("metadata", {})
    texts = (item.get("apiVersion"), item.get("kind"), meta.get("namespace", ""), meta.get("name"))
    return Ref(*(str(text) for text in texts))


def _plain(kind: Kind, item: Object) -> Object:
    """An object as everywhere else: with its type (lists leave it out); of the server's book, our own entry."""
    if kind.foreign or kind is kinds.POD:
        item["metadata"].pop("managedFields", None)
    else:
        item["metadata"]["managedFields"] = ours(item)
    return {**item, "apiVersion": kind.api_version, "kind": kind.name}


def _lasting(node: Object) -> Object:
    """What a node's heartbeat leaves as it is."""
    status = node.get("status", {})
    conditions = [
        {key: value for key, value in item.items() if key != "lastHeartbeatTime"}
        for item in status.get("conditions", [])
    ]
    labels = node["metadata"].get("labels", {})
    return {
        "labels": labels,
        "spec": node.get("spec", {}),
        "allocatable": status.get("allocatable", {}),
        "conditions": conditions,
    }


def _encode(versions: Mapping[Kind, str]) -> str:
    """One version for all kinds: each has its own on an API server."""
    return ",".join(f"{kind.plural}={versions[kind]}" for kind in kinds.READ)


def _decode(text: str) -> dict[Kind, str] | None:
    """The version of each kind; None for a text that none of ours wrote."""
    parts = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    try:
        return {kind: parts[kind.plural] for kind in kinds.READ}
    except KeyError:
        return None
