"""Engines that span nodes, by LeaderWorkerSet's own controller: ranks, a common end, and waiting for room."""

import os
import signal
from uuid import uuid4

import pytest

from inference import clusters
from inference.clock import database_now
from inference.core.words import Phase
from inference.models import Endpoint, Pool
from inference.reconciler.run import reconcile
from inference.selectors import endpoint_view
from inference.services import endpoint_delete
from k8s.cluster import Ref
from k8s.desired import RegionBinding, TenantSpec, deployment_objects, deployment_refs, tenant_objects
from k8s.engine_pod import LEADER_ADDRESS, RANK
from k8s.observe import RUNNING, UNSCHEDULABLE
from tenants.services import quota_set, tenant_create
from tests.cluster.test_endpoint import reaches
from tests.cluster.test_pools import TAINT, binding, node_of
from tests.inference.conftest import create, neighbours  # noqa: F401  the other rooms, recorded
from tests.k8s.harness import ask, spec, until

pytestmark = pytest.mark.cluster
ARGS = ("/models/tiny", "--nnodes", "2", "--node-rank", RANK, "--master-addr", LEADER_ADDRESS)
POOL = binding("ascend")


@pytest.fixture
def tenant(site):
    """A new tenant with its namespace; its id."""
    tenant_id = uuid4()
    results = site.cluster.apply(tenant_objects(TenantSpec(tenant_id=tenant_id, pods=20), RegionBinding(name="cn")))
    assert all(result.error is None for result in results)
    return tenant_id


@pytest.fixture
def deploy(site, tenant):
    """Applies a deployment whose replicas are pods on two nodes, each the whole of its node; all end with the test."""
    made = []

    def apply(deployment_id=None, **changes):
        fields = {"tenant_id": tenant, "deployment_id": deployment_id or uuid4(), "accelerator_count": 8, "nodes": 2}
        wanted = spec(**fields, args=ARGS, worker_args=("--headless",), **changes)
        made.append(wanted.deployment_id)
        results = site.cluster.apply(deployment_objects(wanted, POOL))
        assert [result.error for result in results] == [None] * len(results)
        return wanted.deployment_id

    yield apply
    for deployment_id in made:
        site.cluster.delete(deployment_refs(tenant, deployment_id), grace_s=1)
        until(lambda deployment_id=deployment_id: site.seen(deployment_id) is None)


@pytest.fixture
def group(site, deploy):
    """One replica of two pods, ready; its deployment."""
    site.start(node_of("ascend", 0), node_of("ascend", 1))
    deployment_id = deploy()
    site.ready(1, deployment_id)
    return deployment_id


def members(site):
    """The pods of the one group, by their rank."""
    return {
        pod["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/worker-index"]: pod for pod in site.cluster.list().pods
    }


def test_leader_and_worker_know_their_rank_and_the_leaders_name(site, group):
    [replica] = site.pods(group)
    pods = members(site)
    assert replica.name == pods["0"]["metadata"]["name"]
    assert {pod["spec"]["nodeName"] for pod in pods.values()} == {"ascend-0", "ascend-1"}
    told = {rank: {item["name"]: item.get("value") for item in env_of(pod)} for rank, pod in pods.items()}
    leader = f"{replica.name}.{replica.name.rpartition('-')[0]}.{pods['0']['metadata']['namespace']}"
    assert {rank: env["LWS_WORKER_INDEX"] for rank, env in told.items()} == {"0": "0", "1": "1"}
    assert {env["LWS_LEADER_ADDRESS"] for env in told.values()} == {leader}
    assert {env["LWS_GROUP_SIZE"] for env in told.values()} == {"2"}
    argv = ask(replica.address)["argv"]
    assert argv[argv.index("--node-rank") + 1 : argv.index("--node-rank") + 4] == ["0", "--master-addr", leader]
    assert f"--node-rank 1 --master-addr {leader} --headless" in " ".join(said(site, pods["1"]))


def said(site, worker):
    """The words of a worker's last line."""
    return until(lambda: site.cluster.log(Ref.of({**worker, "apiVersion": "v1", "kind": "Pod"}), 1)).split()


def env_of(pod):
    return pod["spec"]["containers"][0]["env"]


def test_a_worker_that_dies_takes_the_whole_group_with_it(site, group):
    before = {pod["metadata"]["uid"] for pod in members(site).values()}
    os.kill(int(said(site, members(site)["1"])[2].rstrip(",")), signal.SIGKILL)
    until(lambda: not before & {pod["metadata"]["uid"] for pod in site.cluster.list().pods}, 40)
    site.ready(1, group)
    assert len(members(site)) == 2


def test_a_service_selects_the_leader_alone(site, tenant, group):
    service = site.stored(tenant, "services", f"{deployment_name(site)}-leader", group="api/v1")
    wanted = service["spec"]["selector"].items()
    chosen = [pod for pod in members(site).values() if wanted <= pod["metadata"]["labels"].items()]
    assert [pod["metadata"]["name"] for pod in chosen] == [members(site)["0"]["metadata"]["name"]]


def deployment_name(site):
    return members(site)["0"]["metadata"]["labels"]["leaderworkerset.sigs.k8s.io/name"]


def test_applying_a_group_again_changes_nothing(site, tenant, group, deploy):
    before = site.stored(tenant, "leaderworkersets", deployment_name(site), group="apis/leaderworkerset.x-k8s.io/v1")
    deploy(group)
    after = site.stored(tenant, "leaderworkersets", deployment_name(site), group="apis/leaderworkerset.x-k8s.io/v1")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    [replica] = site.pods(group)
    assert (replica.reason, site.seen(group).settled) == (RUNNING, True)


def test_a_group_without_room_for_all_of_it_is_not_ready_and_says_why(site, deploy):
    site.start(node_of("ascend", 0))
    deployment_id = deploy()
    until(lambda: [pod.reason for pod in site.pods(deployment_id)] == [UNSCHEDULABLE], 30)
    [replica] = site.pods(deployment_id)
    assert not replica.ready
    assert "huawei.com/Ascend910" in replica.message
    site.start(node_of("ascend", 1))
    site.ready(1, deployment_id)


@pytest.fixture
def pool(database, site, neighbours, monkeypatch):  # noqa: F811
    """Three nodes of eight cards as a region of their own."""
    name = f"whole-{uuid4().hex[:8]}"
    monkeypatch.setattr(clusters, "cluster", lambda _: site.cluster)
    site.start(*(node_of("nvidia", number) for number in range(3)))
    yield Pool.objects.create(
        region=name,
        name=name,
        cluster=name,
        accelerator="nvidia-h100-80",
        resource_name="nvidia.com/gpu",
        node_selector=dict(binding("nvidia").node_selector),
        tolerations=[TAINT],
        capacity=24,
        nodes={f"nvidia-{number}": 8 for number in range(3)},
        arch="amd64",
        engine_images={"docker.io/vllm/vllm-openai": {"image": "registry.example/vllm:1", "version": "0.32.0"}},
        weights_root="/weights",
    )
    Endpoint.objects.filter(region=name, archived_at__isnull=True).update(archived_at=database_now())


def test_nothing_is_created_until_as_many_whole_nodes_are_free(site, pool):
    acme = tenant_create(name="Acme", currency="USD")
    quota_set(tenant_id=acme.id, resource="accelerators", limit=100)
    first, second = (
        create(acme, name=name, region=pool.region, release="deepseek-r1-0528") for name in ("first", "second")
    )
    reaches(site, pool, first, Phase.RUNNING)
    reconcile(second.id)
    second.refresh_from_db()
    view = endpoint_view(second)
    assert view.phase is Phase.WAITING_CAPACITY
    assert view.message == f"2 whole nodes of pool {pool.name} are needed at once; free now: 1"
    assert site.seen(second.deployments.get().id) is None
    endpoint_delete(endpoint=first, actor="test")
    reaches(site, pool, first, Phase.DELETED)
    reaches(site, pool, second, Phase.RUNNING)
    endpoint_delete(endpoint=second, actor="test")
    reaches(site, pool, second, Phase.DELETED)
    ours = deployment_refs(acme.id, second.deployments.get().id)
    assert not {Ref.of(item) for item in site.cluster.list().objects} & set(ours)
