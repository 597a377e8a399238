"""Four vendors' pools under a real scheduler: where pods land, what they wait for, and what becomes of lost nodes."""

import dataclasses
import time
from uuid import uuid4

import pytest

from k8s.desired import RegionBinding, TenantSpec, deployment_objects, tenant_objects
from k8s.observe import NODE_LOST, QUOTA_EXCEEDED, RUNNING, UNSCHEDULABLE
from tests.cluster.nodes import machine
from tests.k8s.golden_cases import POOLS
from tests.k8s.harness import spec, until

pytestmark = pytest.mark.cluster
VENDORS = ("nvidia", "ascend", "mthreads", "enflame")
REGION = RegionBinding(name="cn-north")
TAINT = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}


def binding(vendor, **changes):
    """The vendor's golden pool; weights come with the node, and a silent one is given up soon."""
    return dataclasses.replace(POOLS[vendor], weights_volume=None, **({"lost_after_s": 1} | changes))


def node_of(vendor, number=0, count=8):
    pool = binding(vendor)
    return machine(
        f"{vendor}-{number}",
        labels=dict(pool.node_selector),
        resources={pool.resource_name: count},
        taints=[TAINT] if vendor == "nvidia" else [],
        arch=pool.arch,
    )


@pytest.fixture
def tenant(site):
    """A new tenant with its namespace; its id."""
    tenant_id = uuid4()
    results = site.cluster.apply(tenant_objects(TenantSpec(tenant_id=tenant_id, pods=20), REGION))
    assert all(result.error is None for result in results)
    return tenant_id


def deploy(site, tenant, vendor, **changes):
    """A deployment of the small program on a vendor's pool; its id."""
    fields = {"tenant_id": tenant, "deployment_id": uuid4(), "accelerator_count": 8} | changes
    results = site.cluster.apply(deployment_objects(spec(**fields), binding(vendor)))
    assert all(result.error is None for result in results)
    return fields["deployment_id"]


def test_every_vendors_pod_lands_on_its_own_pool_and_no_other(site, tenant):
    site.start(*(node_of(vendor, number) for vendor in VENDORS for number in range(2)))
    wanted = {vendor: deploy(site, tenant, vendor, replicas=2) for vendor in VENDORS}
    for vendor, deployment_id in wanted.items():
        pods = site.ready(2, deployment_id)
        assert {pod.node for pod in pods} == {f"{vendor}-0", f"{vendor}-1"}
        assert {pod.reason for pod in pods} == {RUNNING}


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_pod_without_room_names_the_scarce_resource_and_runs_once_there_is_room(site, tenant, vendor):
    others = (node_of(other) for other in VENDORS if other != vendor)
    site.start(*others, node_of(vendor, count=7))
    deployment_id = deploy(site, tenant, vendor)
    [waiting] = until(lambda: [pod for pod in site.pods(deployment_id) if pod.reason == UNSCHEDULABLE])
    resource = POOLS[vendor].resource_name
    assert waiting.message == f"No node has room: not enough {resource} is free. It starts when some is."
    site.start(node_of(vendor, 1))
    [pod] = site.ready(1, deployment_id)
    assert (pod.uid, pod.node) == (waiting.uid, f"{vendor}-1")


def test_a_pool_without_nodes_is_said_to_be_out_of_service(site, tenant):
    site.start(node_of("nvidia"), node_of("enflame"))
    deployment_id = deploy(site, tenant, "ascend")
    [waiting] = until(lambda: [pod for pod in site.pods(deployment_id) if pod.reason == UNSCHEDULABLE])
    assert waiting.message == "No node of this pool is in service."


def test_a_quota_of_one_lets_one_of_two_engines_through(site):
    tenant_id = uuid4()
    quota = TenantSpec(tenant_id=tenant_id, pods=20, accelerators={"enflame.com/gcu": 8})
    site.cluster.apply(tenant_objects(quota, REGION))
    site.start(node_of("enflame", 0), node_of("enflame", 1))
    deployment_id = deploy(site, tenant_id, "enflame", replicas=2)
    until(lambda: site.seen(deployment_id) and site.seen(deployment_id).reason == QUOTA_EXCEEDED)
    until(lambda: site.seen(deployment_id).ready == 1)
    assert "enflame.com/gcu" in site.seen(deployment_id).message


def test_a_lost_node_is_told_and_its_engine_replaced_on_another(site, tenant):
    site.start(*(node_of("enflame", number) for number in range(2)), *(node_of(vendor) for vendor in VENDORS[:2]))
    deployment_id = deploy(site, tenant, "enflame")
    [first] = site.ready(1, deployment_id)
    site.nodes.lose(first.node)
    lost = until(lambda: [pod for pod in site.pods(deployment_id) if pod.reason == NODE_LOST])
    assert not lost[0].ready
    assert "Kubernetes replaces it once" in lost[0].message
    replaced = until(lambda: [pod for pod in site.pods(deployment_id) if pod.ready and pod.node != first.node])
    assert replaced[0].uid != first.uid
    # Kubernetes keeps the dead pod until its node speaks again; it is neither counted nor called well.
    seen = site.seen(deployment_id)
    assert (seen.ready, seen.settled) == (1, False)
    assert {pod.reason for pod in seen.pods} == {NODE_LOST, RUNNING}
    site.nodes.revive(first.node)
    [left] = site.ready(1, deployment_id)
    assert left.uid == replaced[0].uid


def test_a_small_pool_is_not_emptied_and_the_truth_is_told_all_the_same(site, tenant):
    """Most of a small cluster silent at once: Kubernetes evicts nobody and replaces nothing."""
    site.start(*(node_of("mthreads", number) for number in range(3)), node_of("nvidia"))
    deployment_id = deploy(site, tenant, "mthreads", replicas=3)
    pods = site.ready(3, deployment_id)
    site.nodes.lose(*(pod.node for pod in pods))
    until(lambda: [pod.reason for pod in site.pods(deployment_id)] == [NODE_LOST] * 3)
    time.sleep(3)
    seen = site.seen(deployment_id)
    assert {(pod.uid, pod.terminating) for pod in seen.pods} == {(pod.uid, False) for pod in pods}
    assert (seen.ready, seen.settled, seen.reason) == (0, False, NODE_LOST)
    # Three of four nodes: the truth is that waiting does not help, and what would.
    assert "replaces nothing" in seen.message
    assert "until they answer or are taken out of the cluster" in seen.message
