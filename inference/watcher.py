"""The watcher: follows each cluster's changes and records facts as they happen, one thread per cluster.

Stopping it loses speed alone: the sweep lists every cluster too.
"""

import logging
import threading
from uuid import UUID

from django.db import close_old_connections

from inference import clusters, facts
from inference.clock import database_now
from inference.models import Pool
from k8s.cluster import Change, Cluster, Ref, Snapshot, UnreachableError
from k8s.desired import DEPLOYMENT_LABEL
from k8s.observe import observe
from kernel import ids

log = logging.getLogger(__name__)

# Facts that no change tells of, such as a node that falls silent, are at most this old.
FOLLOW_S = 10.0
PAUSE_S = 2.0


class View:
    """A cluster as last known: a snapshot, brought forward change by change.

    It may lag behind a listing that began later; so it says of no pod that it is gone but of those in `gone`,
    whose end it was told.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.gone: set[UUID] = set()
        self._objects = {Ref.of(item): item for item in snapshot.objects}
        self._pods = {Ref.of(item): item for item in snapshot.pods}
        self._nodes = snapshot.nodes
        self._version = snapshot.version

    def take(self, change: Change) -> UUID | None:
        """Bring the view forward by one of our objects or a pod; the deployment that it touches, if any."""
        items = self._pods if change.object["kind"] == "Pod" else self._objects
        if change.gone:
            items.pop(Ref.of(change.object), None)
        else:
            items[Ref.of(change.object)] = change.object
        if change.gone and items is self._pods:
            self.gone.add(UUID(change.object["metadata"]["uid"]))
        self._version = change.version
        label = change.object["metadata"].get("labels", {}).get(DEPLOYMENT_LABEL)
        return ids.decode(ids.DEPLOYMENT, label) if label else None

    def snapshot(self) -> Snapshot:
        """The view as a whole."""
        return Snapshot(tuple(self._objects.values()), tuple(self._pods.values()), self._nodes, self._version)


def follow(name: str, source: Cluster, stop: threading.Event) -> None:
    """List a cluster, then record its changes until they end, a node changes or `stop` is set.

    A node speaks for all of its pods, so the caller lists again. UnreachableError where nobody answers.
    """
    listed = facts.record_listing(name, source)
    view = View(listed)
    for change in source.changes(listed.version, timeout_s=FOLLOW_S):
        if stop.is_set() or change.object["kind"] == "Node":
            return
        touched = view.take(change)
        if touched is not None:
            seen = observe(view.snapshot())
            facts.record(name, seen, as_of=database_now(), only={touched}, gone=view.gone)


def run(stop: threading.Event) -> None:
    """Follow every cluster that a pool names, until `stop` is set: a record is one transaction and needs no end."""
    names = Pool.objects.values_list("cluster", flat=True).distinct().order_by("cluster")
    for name in names:
        threading.Thread(target=_keep_following, args=(name, stop), name=f"watch-{name}", daemon=True).start()
    stop.wait()


def _keep_following(name: str, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            follow(name, clusters.cluster(name), stop)
        except UnreachableError as error:
            log.warning("cluster %s does not answer: %s", name, error)
            stop.wait(PAUSE_S)
        except Exception:
            log.exception("following cluster %s broke; it begins anew", name)
            stop.wait(PAUSE_S)
        close_old_connections()
