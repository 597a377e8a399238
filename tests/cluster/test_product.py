"""From the API to pods on the right pool and back to nothing, with every process of the product in its place."""

import time

import pytest

from tests.cluster.product import VENDORS, node_of
from tests.k8s.golden_cases import POOLS
from tests.k8s.harness import until
from tests.services import wait_until

SERVE_S = 5.0
pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_endpoint_waits_for_its_pools_card_runs_there_scales_pauses_and_leaves_nothing(product, vendor):
    product.prefer(vendor)
    others = [node_of(other, 9, 8) for other in VENDORS if other != vendor]
    product.site.start(*others)
    endpoint_id = product.create(f"on-{vendor}")
    deployment_id = product.deployment(endpoint_id)

    waiting = product.moorage.until_phase(endpoint_id, "waiting_capacity", 60)
    resource = POOLS[vendor].resource_name
    until(lambda: "No node" in product.moorage.call("GET", f"/endpoints/{endpoint_id}").body["message"], 30)
    assert product.pods(deployment_id)[0]["spec"].get("nodeName") is None, waiting

    full = node_of(vendor, 0, 0)
    product.site.start(full)
    wanted = f"not enough {resource} is free"
    until(lambda: wanted in product.moorage.call("GET", f"/endpoints/{endpoint_id}").body["message"], 60)

    product.site.start(node_of(vendor, 1))
    product.moorage.until_phase(endpoint_id, "running", 60)
    assert nodes(product, deployment_id) == [f"{vendor}-1"]
    assert product.moorage.chat(endpoint_id).status == 200

    product.change(endpoint_id, "scale", replicas=2)
    product.site.start(node_of(vendor, 2))
    wait_until(lambda: product.moorage.call("GET", f"/endpoints/{endpoint_id}").body["serving"] == 2, "two", 60)
    assert nodes(product, deployment_id) == [f"{vendor}-1", f"{vendor}-2"]

    product.change(endpoint_id, "pause")
    product.moorage.until_phase(endpoint_id, "paused", 60)
    wait_until(lambda: product.pods(deployment_id) == [], "no pod of a paused endpoint", 60)

    product.delete(endpoint_id)
    product.moorage.until_phase(endpoint_id, "deleted", 60)
    assert product.leftovers(deployment_id) == ([], [], [(0, False, 0)])
    product.moorage.assert_books()
    product.site.nodes.remove(*(node["metadata"]["name"] for node in others), *(f"{vendor}-{n}" for n in range(3)))


def nodes(product, deployment_id):
    return sorted(pod["spec"]["nodeName"] for pod in product.pods(deployment_id))


def test_a_real_engine_in_a_pod_answers_through_the_gateway_and_is_billed(product):
    product.prefer("enflame", "engine.moorage.local/vllm-cpu:0.32.0")
    product.site.start(node_of("enflame", 5))
    endpoint_id = product.create("real-engine")
    deployment_id = product.deployment(endpoint_id)
    product.moorage.until_phase(endpoint_id, "running")
    [pod] = product.pods(deployment_id)
    assert pod["spec"]["nodeName"] == "enflame-5"
    assert pod["spec"]["containers"][0]["image"] == "engine.moorage.local/vllm-cpu:0.32.0"

    answer = product.moorage.chat(endpoint_id)
    assert answer.status == 200, answer.body
    event = product.moorage.event_of(answer.headers["x-request-id"])
    time.sleep(SERVE_S)
    assert event["counts"]["out"] == answer.body["usage"]["completion_tokens"] > 1

    product.delete(endpoint_id)
    product.moorage.until_phase(endpoint_id, "deleted", 120)
    wait_until(lambda: billed_s(product, deployment_id) >= SERVE_S - 1, "the seconds that it served", 120)
    assert product.leftovers(deployment_id) == ([], [], [(0, False, 0)])
    product.moorage.assert_books()
    product.site.nodes.remove("enflame-5")
    product.prefer("enflame")


def billed_s(product, deployment_id):
    """Accelerator seconds of a deployment that are rated so far."""
    sql = """SELECT coalesce(sum(l.quantity), 0) FROM rated_line l JOIN usage_event u USING (event_id)
             WHERE u.kind = 'accel' AND u.subject_id = %s"""
    return product.moorage.query(sql, deployment_id)[0][0]
