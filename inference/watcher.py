"""The watcher: follows each cluster's changes and records facts as they happen, one thread per cluster.

Stopping it loses speed alone: the sweep lists every cluster too.
"""

import logging
import threading
import time
from collections import defaultdict
from uuid import UUID

from django.db import close_old_connections

from inference import clusters, facts
from inference.clock import database_now
from k8s.cluster import Change, Cluster, Object, Ref, Snapshot, UnreachableError
from k8s.observe import deployment_id_of, observe
from k8s.ownership import owned

log = logging.getLogger(__name__)

# Facts that no change tells of are at most this old, or four times what a listing of a large cluster takes.
FOLLOW_S = 10.0
PAUSE_S = 2.0


class View:
    """A cluster as last known: a snapshot, brought forward change by change, one namespace at a time.

    It may lag behind a listing that began later; so it says of no pod that it is gone but of those in `gone`,
    whose end it was told.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.gone: set[UUID] = set()
        self._items: dict[str, dict[Ref, Object]] = defaultdict(dict)
        for item in (*snapshot.objects, *snapshot.pods):
            self._items[_place(item)][Ref.of(item)] = item
        self._nodes = snapshot.nodes
        self._version = snapshot.version

    def take(self, change: Change) -> set[UUID]:
        """Bring the view forward by one of our objects or a pod; the deployments that it touches."""
        item, ref = change.object, Ref.of(change.object)
        items = self._items[_place(item)]
        before = items.pop(ref, None)
        if not change.gone:
            items[ref] = item
        elif item["kind"] == "Pod":
            self.gone.add(UUID(item["metadata"]["uid"]))
        self._version = change.version
        if deployment_id := deployment_id_of(item):
            return {deployment_id}
        # All of a tenant's deployments share it; what the cluster itself keeps writing there touches none.
        if before is not None and not change.gone and owned(before) == owned(item):
            return set()
        return {found for other in items.values() if (found := deployment_id_of(other))}

    def snapshot(self, item: Object) -> Snapshot:
        """What there is in the namespace of `item`, which is all that its deployments consist of."""
        items = self._items[_place(item)].values()
        pods = tuple(other for other in items if other["kind"] == "Pod")
        objects = tuple(other for other in items if other["kind"] != "Pod")
        return Snapshot(objects, pods, self._nodes, self._version)


def _place(item: Object) -> str:
    """The namespace that an object is in, or is."""
    ref = Ref.of(item)
    return ref.namespace or ref.name


def follow(name: str, source: Cluster, stop: threading.Event) -> None:
    """List a cluster, then record its changes until they end, a node changes or `stop` is set.

    A node speaks for all of its pods, so the caller lists again. UnreachableError where nobody answers.
    """
    began = time.monotonic()
    listed = facts.record_listing(name, source)
    follow_s = max(FOLLOW_S, facts.rest_s(time.monotonic() - began))
    view = View(listed)
    for change in source.changes(listed.version, timeout_s=follow_s):
        if stop.is_set() or change.object["kind"] == "Node":
            return
        if touched := view.take(change):
            seen = observe(view.snapshot(change.object))
            facts.record(name, seen, as_of=database_now(), only=touched, gone=view.gone)


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
