"""The watcher: follows each cluster's changes and records facts as they happen, one thread per cluster.

Stopping it loses speed alone: the sweep lists every cluster too.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from uuid import UUID

from django.db import close_old_connections

from inference import clusters, facts
from inference.clock import database_now
from inference.orphans import orphans_sweep
from inference.silence import rest_s
from k8s.cluster import Change, Cluster, Object, Ref, Snapshot, UnreachableError
from k8s.observe import deployment_id_of, observe
from k8s.ownership import owned

log = logging.getLogger(__name__)

# Facts that no change tells of are at most this old, or four times what a listing of a large cluster takes.
FOLLOW_S = 10.0
PAUSE_S = 2.0
FOLD_S = 0.1


class View:
    """A cluster as last known: a snapshot, brought forward change by change; what a deployment consists of at hand.

    It may lag behind a listing that began later; so it says of no pod that it is gone but of those in `gone`,
    whose end it was told.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.gone: set[UUID] = set()
        # By namespace and deployment; under None what all of a tenant's share.
        self._items: dict[str, dict[UUID | None, dict[Ref, Object]]] = defaultdict(lambda: defaultdict(dict))
        self._owners: dict[Ref, UUID | None] = {}
        self._places: dict[UUID, str] = {}
        self._nodes, self._version = snapshot.nodes, snapshot.version
        for item in (*snapshot.objects, *snapshot.pods):
            self._put(item)

    def take(self, change: Change) -> set[UUID]:
        """Bring the view forward by one of our objects or a pod; the deployments that it touches."""
        item, ref = change.object, Ref.of(change.object)
        place, deployment_id = _place(item), deployment_id_of(item)
        # Its label may have been another.
        owner = self._owners.pop(ref, deployment_id)
        before = self._items[place][owner].pop(ref, None)
        if not change.gone:
            self._put(item)
        elif item["kind"] == "Pod":
            self.gone.add(UUID(item["metadata"]["uid"]))
        self._version = change.version
        if touched := {found for found in (owner, deployment_id) if found}:
            return touched
        # All of a tenant's deployments share it; what the cluster itself keeps writing there touches none.
        if before is not None and not change.gone and owned(before) == owned(item):
            return set()
        return {found for found in self._items[place] if found}

    def snapshot(self, deployment_ids: Iterable[UUID]) -> Snapshot:
        """All that these deployments consist of."""
        items: dict[Ref, Object] = {}
        for deployment_id in deployment_ids:
            there = self._items[self._places.get(deployment_id, "")]
            items |= there[None] | there[deployment_id]
        pods = tuple(item for item in items.values() if item["kind"] == "Pod")
        objects = tuple(item for item in items.values() if item["kind"] != "Pod")
        return Snapshot(objects, pods, self._nodes, self._version)

    def _put(self, item: Object) -> None:
        place, deployment_id = _place(item), deployment_id_of(item)
        self._items[place][deployment_id][Ref.of(item)] = item
        self._owners[Ref.of(item)] = deployment_id
        if deployment_id:
            self._places[deployment_id] = place


def _place(item: Object) -> str:
    """The namespace that an object is in, or is."""
    ref = Ref.of(item)
    return ref.namespace or ref.name


def follow(name: str, source: Cluster, stop: threading.Event) -> None:
    """List a cluster, then record its changes until they end, a node changes or `stop` is set.

    What comes within FOLD_S is recorded together. A node speaks for all of its pods, so the caller lists again.
    UnreachableError where nobody answers.
    """
    began = time.monotonic()
    listed = facts.record_listing(name, source)
    orphans_sweep(source, listed)
    follow_s = max(FOLLOW_S, rest_s(time.monotonic() - began))
    view, touched = View(listed), set[UUID]()
    for change in source.changes(listed.version, timeout_s=follow_s):
        if stop.is_set() or change.object["kind"] == "Node":
            return
        touched |= view.take(change)
        if touched and not change.more:
            facts.record(name, observe(view.snapshot(touched)), as_of=database_now(), only=touched, gone=view.gone)
            touched.clear()
            # What comes meanwhile comes together.
            stop.wait(FOLD_S)


def run(stop: threading.Event) -> None:
    """Follow every cluster that a pool is on, until `stop` is set: a record is one transaction and needs no end."""
    threads: dict[str, threading.Thread] = {}
    while not stop.is_set():
        for name in clusters.names():
            if name not in threads or not threads[name].is_alive():
                threads[name] = threading.Thread(
                    target=_keep_following, args=(name, stop), name=f"watch-{name}", daemon=True
                )
                threads[name].start()
        close_old_connections()
        stop.wait(FOLLOW_S)


def _keep_following(name: str, stop: threading.Event) -> None:
    while not stop.is_set() and name in clusters.names():
        try:
            follow(name, clusters.cluster(name), stop)
        except UnreachableError as error:
            log.warning("cluster %s does not answer: %s", name, error)
            stop.wait(PAUSE_S)
        except Exception:
            log.exception("following cluster %s broke; it begins anew", name)
            stop.wait(PAUSE_S)
        close_old_connections()
