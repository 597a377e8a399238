"""Our fields in other hands: taken back within two seconds by the watcher's word, and by the sweep without it."""

import os
import signal
from datetime import datetime

import pytest

from k8s.desired import name_of
from tests.cluster.nodes import STRATEGIC
from tests.cluster.product import node_of
from tests.k8s.harness import until

pytestmark = pytest.mark.cluster
FOREIGN = {"metadata": {"annotations": {"example.com/cost-centre": "42"}}}
# By name: the object that somebody changes, and how.
WORKLOAD, QUOTA = ("apis/apps/v1", "deployments"), ("api/v1", "resourcequotas")
DRIFTS = {
    "image": (WORKLOAD, {"spec": {"template": {"spec": {"containers": [{"name": "engine", "image": "x/y:9"}]}}}}),
    "deadline": (WORKLOAD, {"spec": {"progressDeadlineSeconds": 70}}),
    "replicas": (WORKLOAD, {"spec": {"replicas": 0}}),
    "label": (WORKLOAD, {"metadata": {"labels": {"moorage.dev/tenant": None}}}),
    "quota": (QUOTA, {"spec": {"hard": {"pods": "1000"}}}),
}


@pytest.fixture(scope="module")
def endpoint(product):
    """A running endpoint: its deployment's id."""
    product.prefer("enflame")
    product.site.start(node_of("enflame"))
    endpoint_id = product.create("drifts")
    deployment_id = product.deployment(endpoint_id)
    product.moorage.until_phase(endpoint_id, "running", 90)
    site, tenant = product.site, product.tenant_id
    site.patch(tenant, "deployments", name_of(deployment_id), FOREIGN)
    yield deployment_id
    product.delete(endpoint_id)
    product.moorage.until_phase(endpoint_id, "deleted", 90)
    product.site.nodes.remove("enflame-0")


def rests(product, deployment_id):
    """Wait until the last apply was seen by a whole listing, and the endpoint runs."""
    sql = """SELECT 1 FROM deployment d JOIN endpoint e ON e.id = d.endpoint_id, cluster_listing l
             WHERE d.id = %s AND l.cluster = 'vendors' AND l.listed_at > d.applied_at AND e.due_at IS NULL
             AND d.fault IS NULL AND e.serving = 1"""
    until(lambda: product.moorage.query(sql, deployment_id), 60)


def ours(product, deployment_id):
    """What is ours of the two objects, as stored."""
    workload = product.site.stored(product.tenant_id, "deployments", name_of(deployment_id))
    quota = product.site.stored(product.tenant_id, "resourcequotas", "tenant", "api/v1")
    return workload["spec"], workload["metadata"]["labels"], quota["spec"]


def drift(product, deployment_id, name):
    """Somebody changes something at rest and it comes back; seconds between, by the API server's clock."""
    rests(product, deployment_id)
    (group, plural), change = DRIFTS[name]
    target = name_of(deployment_id) if plural == "deployments" else "tenant"
    before = ours(product, deployment_id)
    seen = {user: len(product.site.plane.writes(user)) for user in ("admin", "app")}
    product.site.admin.call(
        "PATCH",
        product.site.path(product.tenant_id, plural, target, group),
        body=change,
        content_type=STRATEGIC,
    )
    until(lambda: ours(product, deployment_id) == before, 30)
    at = {
        user: min(
            datetime.fromisoformat(event["stageTimestamp"])
            for event in product.site.plane.writes(user)[count:]
            if event["objectRef"].get("name") == target
        )
        for user, count in seen.items()
    }
    return (at["app"] - at["admin"]).total_seconds()


@pytest.mark.parametrize("name", DRIFTS)
def test_a_drifted_field_is_repaired_within_two_seconds_and_a_foreign_one_survives(product, endpoint, name):
    assert 0 < drift(product, endpoint, name) < 2
    stored = product.site.stored(product.tenant_id, "deployments", name_of(endpoint))
    assert stored["metadata"]["annotations"]["example.com/cost-centre"] == "42"


def test_a_second_drift_right_after_a_repair_is_repaired_as_soon(product, endpoint):
    rests(product, endpoint)
    before = ours(product, endpoint)
    path = product.site.path(product.tenant_id, "deployments", name_of(endpoint))
    for _ in range(2):
        product.site.admin.call("PATCH", path, body={"spec": {"replicas": 0}}, content_type=STRATEGIC)
        until(lambda: ours(product, endpoint) == before, 5)


@pytest.mark.parametrize("name", ["image", "quota"])
def test_the_sweep_alone_repairs_what_drifted(product, endpoint, name):
    rests(product, endpoint)
    watcher = product.moorage.pid("watcher")
    os.kill(watcher, signal.SIGSTOP)
    try:
        assert drift(product, endpoint, name) > 0
    finally:
        os.kill(watcher, signal.SIGCONT)


def test_a_policy_that_somebody_deleted_is_back_within_two_seconds(product, endpoint):
    rests(product, endpoint)
    path = product.site.path(product.tenant_id, "networkpolicies", "engines", "apis/networking.k8s.io/v1")
    before = product.site.admin.call("GET", path)
    product.site.admin.call("DELETE", path)
    policies = f"{path.rpartition('/')[0]}"

    def back():
        items = product.site.admin.call("GET", policies)["items"]
        return items and items[0]["spec"] == before["spec"]

    until(back, 2)


def test_a_settled_endpoint_is_written_by_nobody(product, endpoint):
    rests(product, endpoint)
    before = len(product.site.plane.writes())
    sweeps = "SELECT listed_at FROM cluster_listing WHERE cluster = 'vendors'"
    [(first,)] = product.moorage.query(sweeps)
    until(lambda: (product.moorage.query(sweeps)[0][0] - first).total_seconds() > 12, 60)
    assert len(product.site.plane.writes()) == before
