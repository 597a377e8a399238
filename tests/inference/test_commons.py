"""What a tenant's deployments share: applied once by a process, again where it may have gone."""

from uuid import UUID

import pytest

from inference.reconciler import commons
from k8s.cluster import Invalid
from k8s.desired import RegionBinding, TenantSpec, deployment_objects, tenant_objects
from tests.inference.scripted import ScriptedCluster
from tests.k8s.harness import POOL, TENANT, spec

SHARED = ["Namespace", "ResourceQuota", "NetworkPolicy", "ServiceAccount"]


class Recorder(ScriptedCluster):
    """Keeps the kinds of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []

    def apply(self, objects):
        wanted = list(objects)
        self.calls.append([item["kind"] for item in wanted])
        return super().apply(wanted)


@pytest.fixture
def cluster():
    return Recorder()


def wanted(number=1, pods=4):
    tenant = TenantSpec(tenant_id=TENANT, pods=pods)
    objects = deployment_objects(spec(deployment_id=UUID(int=number)), POOL)
    return {UUID(int=number): tenant_objects(tenant, RegionBinding(name="here")) + objects}


def apply(cluster, objects, *, again):
    """As a pass has it: the results of all, in one list."""
    done = commons.apply(
        cluster,
        objects,
        lambda cluster, lists: [cluster.apply(items) for items in lists],
        again=objects if again else (),
    )
    return [result for results in done.values() for result in results]


def test_a_second_deployment_brings_itself_alone_and_is_told_of_all(cluster):
    first = apply(cluster, wanted(1), again=False)
    second = apply(cluster, wanted(2), again=False)
    assert cluster.calls == [SHARED, ["Deployment"], ["Deployment"]]
    shared = {result.ref: result.owned for result in first if result.ref.kind in SHARED}
    assert shared.items() <= {result.ref: result.owned for result in second}.items()
    assert len(second) == len(first)


def test_what_has_changed_since_is_applied(cluster):
    apply(cluster, wanted(pods=4), again=False)
    apply(cluster, wanted(pods=8), again=False)
    assert cluster.calls[2:] == [["ResourceQuota"], ["Deployment"]]


def test_a_repair_applies_everything(cluster):
    apply(cluster, wanted(), again=False)
    apply(cluster, wanted(), again=True)
    assert cluster.calls[2:] == [SHARED, ["Deployment"]]


def test_after_a_fault_everything_is_applied(cluster):
    apply(cluster, wanted(), again=False)
    cluster.fault = Invalid("namespaces not found")
    apply(cluster, wanted(), again=False)
    cluster.fault = None
    apply(cluster, wanted(), again=False)
    assert cluster.calls == [SHARED, ["Deployment"], ["Deployment"], SHARED, ["Deployment"]]


def test_another_client_of_the_same_cluster_is_asked_anew(cluster):
    apply(cluster, wanted(), again=False)
    other = Recorder()
    apply(other, wanted(), again=False)
    assert other.calls == [SHARED, ["Deployment"]]


def test_what_several_deployments_share_is_applied_once(cluster):
    results = apply(cluster, wanted(1) | wanted(2), again=False)
    assert cluster.calls == [SHARED, ["Deployment"], ["Deployment"]]
    assert len(results) == 2 * (len(SHARED) + 1)
