"""Lost nodes, killed processes, crowds at the door: the end is always the intent, once, and billed for what served."""

import contextlib
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from tests.cluster.product import node_of
from tests.cluster.test_product import billed_s
from tests.k8s.harness import until
from tests.services import soak, wait_until

pytestmark = pytest.mark.cluster
VICTIMS = ("worker", "watcher", "beat", "scheduler")
# What a killed worker had claimed is free after two minutes, and who was killed often is started half a minute later.
CONVERGED_WITHIN_S = 300.0
names = count()


@pytest.fixture(scope="module", autouse=True)
def pool(product):
    """Room for three on one pool, and healthy nodes of another beside it."""
    product.prefer("enflame")
    spare = [node_of("nvidia", number, 8) for number in range(4)]
    product.site.start(*(node_of("enflame", number) for number in range(3)), *spare)


@pytest.fixture
def endpoint_id(product):
    """A running endpoint of one replica; it ends with the test."""
    endpoint_id = product.create(f"survivor-{next(names)}")
    product.moorage.until_phase(endpoint_id, "running", 90)
    yield endpoint_id
    ends(product, endpoint_id)


def ends(product, endpoint_id):
    deployment_id = product.deployment(endpoint_id)
    product.delete(endpoint_id)
    product.moorage.until_phase(endpoint_id, "deleted", 120)
    assert product.leftovers(deployment_id) == ([], [], [(0, False, 0)])


def view(product, endpoint_id):
    return product.moorage.call("GET", f"/endpoints/{endpoint_id}").body


def test_fault_33_a_lost_nodes_replica_is_replaced_elsewhere_and_not_billed_meanwhile(product, endpoint_id):
    deployment_id = product.deployment(endpoint_id)
    [pod] = product.pods(deployment_id)
    node = pod["spec"]["nodeName"]
    product.site.nodes.lose(node)
    product.moorage.until_phase(endpoint_id, "degraded", 60)
    assert product.moorage.chat(endpoint_id).status == 503
    before = wait_until_still(product, deployment_id)
    # Kubernetes waits for as long as the pod tolerates, here a minute; nothing is billed until another one serves.
    product.moorage.until_phase(endpoint_id, "running", 150)
    serving = {item["metadata"]["uid"]: item["spec"]["nodeName"] for item in product.pods(deployment_id)}
    assert serving.pop(pod["metadata"]["uid"]) == node
    assert node not in serving.values()
    assert product.moorage.chat(endpoint_id).status == 200
    assert billed_s(product, deployment_id) - before < 60
    [(facts,)] = product.moorage.query("SELECT facts FROM observed WHERE deployment_id = %s", deployment_id)
    stuck = next(item for item in facts["pods"] if item["uid"] == pod["metadata"]["uid"])
    assert "out-of-service" in stuck["message"]
    product.site.nodes.revive(node)
    wait_until(lambda: len(product.pods(deployment_id)) == 1, "the end of the stuck pod", 60)


def wait_until_still(product, deployment_id):
    """The seconds that are billed once the loss has been told to billing."""
    seen = [-1]

    def still():
        seen.append(billed_s(product, deployment_id))
        return seen[-1] == seen[-2]

    until(still, 60)
    return seen[-1]


def test_fault_34_an_endpoint_that_waits_for_a_card_is_not_billed(product):
    endpoint_id = product.create(f"waits-{next(names)}", replicas=3)
    product.moorage.until_phase(endpoint_id, "running", 120)
    late = product.create(f"late-{next(names)}")
    product.moorage.until_phase(late, "waiting_capacity", 60)
    assert billed_s(product, product.deployment(late)) == 0
    ends(product, endpoint_id)
    product.moorage.until_phase(late, "running", 120)
    ends(product, late)
    product.moorage.assert_books()


def test_fault_35_an_endpoint_deleted_while_it_is_created_ends_deleted_and_costs_nothing(product):
    endpoint_id = product.create(f"undone-{next(names)}")
    deployment_id = product.deployment(endpoint_id)
    ends(product, endpoint_id)
    assert billed_s(product, deployment_id) == 0
    product.moorage.assert_books()


def test_fault_67_of_fifty_deploys_at_once_a_quota_of_one_lets_one_through(product):
    set_quota = f"""
from tenants.services import quota_set
from uuid import UUID
quota_set(tenant_id=UUID("{product.tenant_id}"), resource="endpoints", limit=%d)
print(json.dumps(True))"""
    product.moorage.shell(set_quota % 1)
    try:
        body = {"release": "tiny-deepseek", "region": "vendors"}

        def deploy(number):
            return product.moorage.call("POST", "/endpoints", body | {"name": f"crowd-{number}"})

        with ThreadPoolExecutor(50) as crowd:
            answers = list(crowd.map(deploy, range(50)))
    finally:
        product.moorage.shell(set_quota % 20)
    assert sorted({answer.status for answer in answers}) == [202, 429]
    [through] = [answer.body["id"] for answer in answers if answer.status == 202]
    product.moorage.until_phase(through, "running", 90)
    ends(product, through)


def test_processes_killed_at_random_points_leave_neither_orphan_nor_double(product, endpoint_id):
    rng = random.Random(6)
    deployment_id = product.deployment(endpoint_id)
    for run in range(soak(100)):
        replicas = 1 + run % 2
        product.change(endpoint_id, "scale", replicas=replicas)
        for victim in rng.sample(VICTIMS, 2):
            kill(product, victim)

        def converged(wanted=replicas):
            seen = view(product, endpoint_id)
            return (seen["phase"], seen["serving"], len(product.pods(deployment_id))) == ("running", wanted, wanted)

        wait_until(converged, f"run {run}: {replicas} replicas", CONVERGED_WITHIN_S)
    [(reserved, alive)] = product.moorage.query(
        """SELECT d.reserved, (SELECT count(*) FROM replica r WHERE r.deployment_id = d.id AND r.state <> 'gone')
           FROM deployment d WHERE d.id = %s""",
        deployment_id,
    )
    assert (reserved, alive) == (replicas, replicas)
    product.moorage.assert_books()


def kill(product, victim):
    """kill -9 now; whoever keeps it starts another."""
    if victim == "scheduler":
        product.site.plane.stop("kube-scheduler")
        product.site.plane.restart("kube-scheduler")
        return
    # It may be on its way up from the last time.
    with contextlib.suppress(ProcessLookupError):
        os.kill(product.moorage.pid(victim), signal.SIGKILL)
