"""Two regions, each a Kubernetes of its own: what is of one never reaches the other, nor does its end."""

from functools import partial

import pytest

from inference.reconciler.perform import CLUSTER_UNREACHABLE
from k8s.desired import name_of
from tests.cluster.boot import ControlPlane, build
from tests.cluster.product import Product, node_of
from tests.cluster.site import Site, prepare
from tests.k8s.harness import until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def near(product):
    """The region of the shared control plane, with room for three."""
    product.prefer("enflame")
    product.site.start(*(node_of("enflame", number) for number in range(3)))
    return product


@pytest.fixture(scope="module")
def far(near, tmp_path_factory):
    """A second region of the same installation, on a control plane of its own."""
    folder = tmp_path_factory.mktemp("far")
    with ControlPlane(build(), folder / "plane") as plane:
        prepare(plane)
        site = Site(plane, folder / "pods", near.folder / "nodes", speed=4)
        try:
            far = Product(near.moorage, site, folder, region="far")
            far.prefer("enflame")
            site.start(*(node_of("enflame", number) for number in range(3)))
            yield far
        finally:
            site.close()


def runs(region, name):
    """A new running endpoint; its id."""
    endpoint_id = region.create(name)
    region.moorage.until_phase(endpoint_id, "running", 90)
    return endpoint_id


def ends(region, endpoint_id):
    deployment_id = region.deployment(endpoint_id)
    region.delete(endpoint_id)
    region.moorage.until_phase(endpoint_id, "deleted", 120)
    assert region.leftovers(deployment_id) == ([], [], [(0, False, 0)])


def test_an_endpoint_lands_in_its_own_region_and_only_there(near, far):
    placed = {region: runs(region, f"in-{region.region}") for region in (near, far)}
    for region, endpoint_id in placed.items():
        assert region.workloads() == {name_of(region.deployment(endpoint_id)): 1}
        assert region.moorage.chat(endpoint_id).status == 200
    for region, endpoint_id in placed.items():
        ends(region, endpoint_id)
    assert near.workloads() == far.workloads() == {}
    near.moorage.assert_books()


def goes_on(region, endpoint_id, *, replicas):
    """The region scales, repairs and creates, each within its usual time."""
    name = name_of(region.deployment(endpoint_id))
    region.change(endpoint_id, "scale", replicas=replicas)
    until(lambda: region.workloads() == {name: replicas}, 60)
    until(lambda: region.moorage.call("GET", f"/endpoints/{endpoint_id}").body["serving"] == replicas, 60)
    region.site.patch(region.tenant_id, "deployments", name, {"spec": {"replicas": 0}})
    stored = partial(region.site.stored, region.tenant_id, "deployments", name)
    until(lambda: stored()["spec"]["replicas"] == replicas, 30)
    ends(region, runs(region, "new"))


def test_a_region_whose_api_server_is_gone_leaves_the_other_untouched(near, far):
    here, there = runs(near, "here"), runs(far, "there")
    far.site.plane.stop("kube-apiserver")
    try:
        goes_on(near, here, replicas=2)
        # Nobody can say anything new of the other region, and its engines go on.
        assert near.moorage.call("GET", f"/endpoints/{there}").body["phase"] == "running"
        assert near.moorage.chat(there).status == 200
    finally:
        far.site.plane.restart("kube-apiserver")
    far.change(there, "scale", replicas=2)
    # Its controllers back off for up to a minute before they read what is there, and its nodes look lost till then.
    far.moorage.until_phase(there, "running", 180)
    until(lambda: far.moorage.call("GET", f"/endpoints/{there}").body["serving"] == 2, 90)
    for region, endpoint_id in ((near, here), (far, there)):
        ends(region, endpoint_id)
    near.moorage.assert_books()


def test_a_region_whose_api_server_says_nothing_holds_up_no_other(near, far):
    here, there = runs(near, "here"), runs(far, "there")
    with far.site.plane.silenced("kube-apiserver"):
        waits = far.create("waits")
        far.change(there, "scale", replicas=2)
        goes_on(near, here, replicas=2)
        told = partial(near.moorage.call, "GET", f"/endpoints/{waits}")
        until(lambda: "has not answered since" in told().body["message"], 60)
        assert told().body["reason"] == CLUSTER_UNREACHABLE
        assert near.moorage.chat(there).status == 200
    ends(near, here)
    near.moorage.assert_books()
