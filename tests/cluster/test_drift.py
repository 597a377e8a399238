"""Several hands on one object: what others add stays, what is ours comes back, and nothing is written in vain."""

import time
from uuid import uuid4

import pytest

from k8s.cluster import Ref
from k8s.desired import RegionBinding, TenantSpec, deployment_objects, name_of, tenant_objects
from tests.cluster.nodes import machine
from tests.k8s.harness import DEPLOYMENT, POOL, SLOT, spec, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def tenant(site):
    """A tenant of one deployment without replicas; its id."""
    tenant_id = uuid4()
    assert all(result.error is None for result in site.cluster.apply(wanted(tenant_id)))
    return tenant_id


def wanted(tenant_id, **changes):
    tenant = TenantSpec(tenant_id=tenant_id, pods=4)
    fields = {"replicas": 0} | changes
    workload = deployment_objects(spec(tenant_id=tenant_id, **fields), POOL)
    return [*tenant_objects(tenant, RegionBinding(name="local")), *workload]


def written(site, objects):
    """The kinds of the objects that an apply of these changed."""
    before = until(lambda: at_rest(site))
    site.cluster.apply(objects)
    after = versions(site)
    return {ref.kind for ref in after if before.get(ref) != after[ref]}


def stored(site, tenant):
    return site.stored(tenant, "deployments", name_of(DEPLOYMENT))


def test_an_apply_of_what_is_there_leaves_every_version_as_it_is(site, tenant):
    site.start(machine("steady", resources={SLOT: 2}))
    site.cluster.apply(wanted(tenant, replicas=1))
    site.ready(1)
    before = until(lambda: at_rest(site))
    for _ in range(3):
        site.cluster.apply(wanted(tenant, replicas=1))
    assert versions(site) == before


def versions(site):
    return {Ref.of(item): item["metadata"]["resourceVersion"] for item in site.cluster.list().objects}


def at_rest(site):
    """The version of every object, once the controllers have written all that they had to say."""
    before = versions(site)
    time.sleep(1)
    return before if versions(site) == before else None


def test_reading_and_watching_write_nothing(site, tenant):
    before = len(site.plane.writes())
    listed = site.cluster.list()
    assert list(site.cluster.changes(listed.version, timeout_s=0.5)) == []
    assert len(site.plane.writes()) == before


def test_our_writes_bear_our_name(site, tenant):
    last = site.plane.writes()[-1]
    assert last["userAgent"] == "moorage"
    managers = {entry["manager"] for entry in stored(site, tenant)["metadata"]["managedFields"]}
    assert "moorage" in managers


def test_what_another_manager_added_survives_our_apply(site, tenant):
    foreign = {
        "metadata": {"annotations": {"example.com/cost-centre": "42"}},
        "spec": {"template": {"spec": {"priorityClassName": "system-node-critical"}}},
    }
    site.patch(tenant, "deployments", name_of(DEPLOYMENT), foreign)
    assert written(site, wanted(tenant)) == set()
    assert written(site, wanted(tenant, generation=2)) == {"Deployment"}
    item = stored(site, tenant)
    assert item["metadata"]["annotations"]["example.com/cost-centre"] == "42"
    assert item["spec"]["template"]["spec"]["priorityClassName"] == "system-node-critical"


@pytest.mark.parametrize(
    "drift",
    [
        {"spec": {"progressDeadlineSeconds": 70}},
        {"spec": {"template": {"metadata": {"labels": {"moorage.dev/spec-hash": "x"}}}}},
        {"metadata": {"labels": {"moorage.dev/generation": "99"}}},
        {"metadata": {"labels": {"moorage.dev/tenant": None}}},
    ],
    ids=["deadline", "template", "generation", "label"],
)
def test_a_field_of_ours_that_drifted_is_told_at_once_and_repaired(site, tenant, drift):
    before = stored(site, tenant)
    since = site.cluster.list().version
    site.patch(tenant, "deployments", name_of(DEPLOYMENT), drift)
    began = time.monotonic()
    # Without our label it is none of ours any more.
    gone = "moorage.dev/tenant" in drift.get("metadata", {}).get("labels", {})
    next(
        change
        for change in site.cluster.changes(since, timeout_s=10)
        if change.object["kind"] == "Deployment" and change.gone == gone
    )
    assert time.monotonic() - began < 1
    site.cluster.apply(wanted(tenant))
    after = stored(site, tenant)
    assert after["spec"] == before["spec"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]


def test_a_policy_that_somebody_deleted_comes_back(site, tenant):
    path = site.path(tenant, "networkpolicies", "engines", "apis/networking.k8s.io/v1")
    site.admin.call("DELETE", path)
    assert written(site, wanted(tenant)) == {"NetworkPolicy"}
