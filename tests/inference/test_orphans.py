"""Workloads that no row accounts for: what a cluster holds beside ours is left alone and stops no sweep."""

from uuid import uuid4

import pytest

from inference.orphans import orphans_list, orphans_sweep
from k8s.cluster import Object, Snapshot
from k8s.desired import DEPLOYMENT_LABEL, TENANT_LABEL
from k8s.local.cluster import LocalCluster
from kernel import ids


def workload(labels: dict[str, str]) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "x",
            "namespace": "n",
            "labels": labels,
            "creationTimestamp": "2020-01-01T00:00:00Z",
        },
    }


@pytest.mark.parametrize("tenant", ["", "ten_nobody", ids.encode(ids.TENANT, uuid4())])
def test_a_workload_of_no_tenant_of_ours_is_left_alone(database, tmp_path, tenant):
    labels = {DEPLOYMENT_LABEL: ids.encode(ids.DEPLOYMENT, uuid4()), TENANT_LABEL: tenant}
    snapshot = Snapshot((workload(labels),), (), (), "1")
    assert orphans_sweep(LocalCluster(tmp_path), snapshot) == []
    assert orphans_list(snapshot) == []


def test_what_the_original_made_after_this_copy_was_taken_is_told_of_and_left_alone(database, tenant, tmp_path):
    labels = {
        DEPLOYMENT_LABEL: ids.encode(ids.DEPLOYMENT, uuid4()),
        TENANT_LABEL: ids.encode(ids.TENANT, tenant.id),
    }
    snapshot = Snapshot((workload(labels),), (), (), "1")
    assert orphans_sweep(LocalCluster(tmp_path), snapshot) == []
    assert [ref.name for ref in orphans_list(snapshot)] == ["x"]
