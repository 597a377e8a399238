"""Lost nodes, killed processes, crowds at the door: the end is always the intent, once, and billed for what served."""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from k8s.desired import name_of
from tests.cluster.product import node_of
from tests.cluster.test_product import billed_s
from tests.k8s.harness import is_gone, until
from tests.services import soak, wait_until

pytestmark = pytest.mark.cluster
VICTIMS = ("worker", "watcher", "beat", "scheduler")
# About what an endpoint takes from its create to its first token.
KILLED_WITHIN_S = 3.0
# What a killed worker had claimed is free after ten seconds, and who was killed often is started half a minute later.
CONVERGED_WITHIN_S = 120.0
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


def test_fault_33_a_lost_nodes_replica_is_replaced_elsewhere_in_its_own_time_and_not_billed_meanwhile(
    product, endpoint_id
):
    deployment_id = product.deployment(endpoint_id)
    [pod] = product.pods(deployment_id)
    lost, node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
    lost_at = datetime.now(UTC)
    product.site.nodes.lose(node)
    degraded = product.moorage.until_phase(endpoint_id, "degraded", 60)
    assert "does not answer" in degraded["message"]
    assert product.moorage.chat(endpoint_id).status == 503
    held = "SELECT held FROM deployment WHERE id = %s"
    assert product.moorage.query(held, deployment_id) == [(True,)]
    product.moorage.until_phase(endpoint_id, "running", 150)

    there = {item["metadata"]["uid"]: item for item in product.pods(deployment_id)}
    assert there.pop(lost)["spec"]["nodeName"] == node
    [replacement] = there.values()
    assert replacement["spec"]["nodeName"] != node
    assert product.moorage.chat(endpoint_id).status == 200
    waited_s = (at(replacement["metadata"]["creationTimestamp"]) - silent_at(product, node)).total_seconds()
    assert tolerated_s(pod) - 1 <= waited_s < tolerated_s(pod) + 10

    # Billed up to its last proof of life, in which the control plane believed for a few seconds more; then from the
    # replacement's first token on.
    until(lambda: spans(product, replacement), 60)
    [(_, ended_at)], [(from_at, _)] = spans(product, pod), spans(product, replacement)
    assert timedelta(seconds=-15) < ended_at - lost_at < timedelta(seconds=15)
    assert from_at - lost_at > timedelta(seconds=tolerated_s(pod))
    told = product.moorage.call("GET", f"/endpoints/{endpoint_id}").body
    assert (told["phase"], "marked out-of-service" in told["message"]) == ("running", True)
    product.site.nodes.revive(node)
    wait_until(lambda: len(product.pods(deployment_id)) == 1, "the end of the stuck pod", 60)


def at(text):
    return datetime.fromisoformat(text)


def silent_at(product, node):
    """When the control plane took the node for lost."""
    conditions = product.site.admin.call("GET", f"/api/v1/nodes/{node}")["status"]["conditions"]
    return at(next(item["lastTransitionTime"] for item in conditions if item["type"] == "Ready"))


def tolerated_s(pod):
    """How long the pod itself says that it may be waited for."""
    unreachable = "node.kubernetes.io/unreachable"
    return next(item["tolerationSeconds"] for item in pod["spec"]["tolerations"] if item["key"] == unreachable)


def spans(product, pod):
    """From when to when a pod is billed, as billing was told."""
    sql = "SELECT from_at, ended_at FROM billable_span WHERE pod_uid = %s"
    return product.moorage.query(sql, pod["metadata"]["uid"])


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
    assert product.workloads() == {name_of(product.deployment(through)): 1}
    ends(product, through)


@pytest.mark.soak
def test_processes_killed_at_random_points_leave_neither_orphan_nor_double(product):
    """Each run makes an endpoint and ends the one before, while two of the four die."""
    rng, endpoint_id = random.Random(6), None
    for run in range(soak(100)):
        before, replicas = endpoint_id, 1 + run % 2
        endpoint_id = product.create(f"run-{run}", replicas=replicas)
        ended = product.deployment(before) if before else None
        if before:
            product.delete(before)
        for victim in rng.sample(VICTIMS, 2):
            time.sleep(rng.uniform(0, KILLED_WITHIN_S))
            kill(product, victim)

        def converged(endpoint_id=endpoint_id, ended=ended, wanted=replicas):
            seen = view(product, endpoint_id)
            gone = ended is None or product.leftovers(ended) == ([], [], [(0, False, 0)])
            return gone and (seen["phase"], seen["serving"]) == ("running", wanted)

        wait_until(converged, f"run {run}: {replicas} replicas, and nothing of the run before", CONVERGED_WITHIN_S)
        assert_once(product, product.deployment(endpoint_id), replicas)
    ends(product, endpoint_id)
    product.moorage.assert_books()


def assert_once(product, deployment_id, replicas):
    """The API server has this workload of the tenant and no other, made by one create; its cards are taken once."""
    assert product.workloads() == {name_of(deployment_id): replicas}
    assert product.creates(deployment_id) == 1
    [(reserved, of_pool, alive)] = product.moorage.query(
        """SELECT d.reserved, p.reserved,
                  (SELECT count(*) FROM replica r WHERE r.deployment_id = d.id AND r.state <> 'gone')
           FROM deployment d JOIN pool p ON p.id = d.pool_id WHERE d.id = %s""",
        deployment_id,
    )
    assert (reserved, of_pool, alive) == (replicas, replicas, replicas)


def kill(product, victim):
    """kill -9 as soon as it runs; whoever keeps it starts another."""
    if victim == "scheduler":
        product.site.plane.stop("kube-scheduler")
        product.site.plane.restart("kube-scheduler")
        return
    until(lambda: not is_gone(product.moorage.pid(victim)), 40)
    os.kill(product.moorage.pid(victim), signal.SIGKILL)
