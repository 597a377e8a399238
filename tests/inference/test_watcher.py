"""The watcher's view of a cluster, and that what comes together is recorded together."""

import threading
from dataclasses import replace
from uuid import UUID

import pytest

from inference import watcher
from inference.watcher import View
from k8s.cluster import Change, Object, Ref, Snapshot
from k8s.desired import RegionBinding, TenantSpec, deployment_objects, tenant_objects
from tests.inference.scripted import ScriptedCluster
from tests.k8s.harness import POOL, TENANT, spec

SHARED = tenant_objects(TenantSpec(tenant_id=TENANT, pods=4), RegionBinding(name="here"))
FIRST, SECOND = UUID(int=1), UUID(int=2)


def workload(deployment_id: UUID, replicas: int = 1) -> Object:
    [item] = deployment_objects(spec(deployment_id=deployment_id, replicas=replicas), POOL)
    return item


@pytest.fixture
def view() -> View:
    return View(Snapshot((*SHARED, workload(FIRST), workload(SECOND)), (), (), "1"))


def test_a_change_touches_its_deployment_alone_and_is_seen_with_what_that_consists_of(view):
    changed = workload(FIRST, replicas=0)
    assert view.take(Change(changed, False, "2")) == {FIRST}
    assert sorted(map(Ref.of, view.snapshot({FIRST}).objects)) == sorted(map(Ref.of, (*SHARED, changed)))
    assert changed in view.snapshot({FIRST}).objects


def test_what_all_share_touches_all_once_it_is_another(view):
    quota = next(item for item in SHARED if item["kind"] == "ResourceQuota")
    assert view.take(Change(quota, False, "2")) == set()
    assert view.take(Change({**quota, "spec": {"hard": {"pods": "9"}}}, False, "3")) == {FIRST, SECOND}
    assert view.take(Change(quota, True, "4")) == {FIRST, SECOND}


def test_an_object_that_says_it_is_anothers_touches_both(view):
    stolen = workload(FIRST)
    stolen["metadata"]["labels"] = workload(SECOND)["metadata"]["labels"]
    assert view.take(Change(stolen, False, "2")) == {FIRST, SECOND}
    assert Ref.of(stolen) not in map(Ref.of, view.snapshot({FIRST}).objects)


def test_what_comes_together_is_recorded_together(harbour, monkeypatch):
    class Source(ScriptedCluster):
        def changes(self, since, *, timeout_s=60.0):
            first, second = (Change(workload(name), False, "2") for name in (FIRST, SECOND))
            yield from (replace(first, more=True), second, first)

    recorded = []
    monkeypatch.setattr(
        watcher.facts, "record", lambda name, seen, *, only=None, **_: recorded.append(only and {*only})
    )
    watcher.follow(harbour.pool.cluster, Source(), threading.Event())
    assert recorded == [None, {FIRST, SECOND}, {FIRST}]
