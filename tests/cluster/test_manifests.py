"""Every manifest as an API server sees it: known fields, allowed values, pods that a `restricted` namespace takes."""

import copy
from uuid import uuid4

import pytest
import yaml

from inference.core.workload import workload
from k8s.cluster import Invalid
from k8s.desired import PoolBinding, deployment_objects, namespace_of
from tests.inference.values import known
from tests.k8s.golden_cases import FOLDER, TENANT
from tests.k8s.harness import until
from tests.k8s.test_cluster_contract import decided

pytestmark = pytest.mark.cluster
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
WORKLOADS = [name for name in FILES if name != "tenant.yaml"]


@pytest.fixture
def namespace(site):
    """The golden tenant's namespace."""
    until(lambda: all(result.error is None for result in site.cluster.apply(documents("tenant.yaml"))))
    return namespace_of(TENANT)


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def pods_of(item):
    """A pod of each template."""
    spec = item["spec"].get("leaderWorkerTemplate", item["spec"])
    templates = [value for key, value in spec.items() if key.lower().endswith("template")]
    return [{"metadata": {"generateName": "try-", **found["metadata"]}, "spec": found["spec"]} for found in templates]


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_passes_strict_validation_and_leaves_nothing_behind(site, namespace, name):
    before = decided(site)
    results = site.cluster.apply(documents(name), dry_run=True)
    assert [result.error for result in results] == [None] * len(results)
    assert decided(site) == before


def test_strict_validation_finds_what_the_server_would_drop(site, namespace):
    [item, *_] = documents("cpu-local.yaml")
    item["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    [result] = site.cluster.apply([item], dry_run=True)
    assert isinstance(result.error, Invalid)
    assert "imagePullPolice" in result.error.message


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_restricted_namespace_takes_the_pods(site, namespace, name):
    [item, *_] = documents(name)
    for pod in pods_of(item):
        answer = site.admin.call("POST", f"/api/v1/namespaces/{namespace}/pods", query={"dryRun": "All"}, body=pod)
        assert answer["spec"]["containers"][0]["image"] == pod["spec"]["containers"][0]["image"]


def test_every_recipe_passes_both(site, namespace):
    pool = PoolBinding(name="any", arch="amd64", resource_name="example.com/card", runtime_class="nvidia")
    recipes = [recipe for recipe in known().recipes.values() if recipe.is_ranked]
    for recipe in recipes:
        spec = workload(
            tenant_id=TENANT,
            endpoint_id=uuid4(),
            deployment_id=uuid4(),
            generation=1,
            replicas=2,
            release=known().releases[recipe.release],
            recipe=recipe,
            image=f"{recipe.image or 'registry.example/engine'}:1",
            weights_root="/weights",
            counts_cards=True,
        )
        manifests = deployment_objects(spec, pool)
        errors = [result.error for result in site.cluster.apply(manifests, dry_run=True)]
        assert errors == [None] * len(manifests), recipe.id
        pods = f"/api/v1/namespaces/{namespace}/pods"
        for pod in pods_of(manifests[0]):
            site.admin.call("POST", pods, query={"dryRun": "All", "fieldValidation": "Strict"}, body=pod)
    assert len(recipes) > 30


@pytest.mark.parametrize(
    "loosen",
    [
        lambda spec: spec["securityContext"].update(runAsNonRoot=False),
        lambda spec: spec["containers"][0]["securityContext"].update(allowPrivilegeEscalation=True),
        lambda spec: spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda spec: spec.update(hostNetwork=True),
        # What the runtime of one make takes: its recipes are refused in regions that tenants share.
        lambda spec: spec.update(hostIPC=True),
        lambda spec: spec["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_NICE"]),
    ],
    ids=["root", "escalation", "host path", "host network", "host IPC", "capability"],
)
def test_the_namespace_refuses_pods_that_reach_out(site, namespace, loosen):
    pod = copy.deepcopy(pods_of(documents("cpu-local.yaml")[0])[0])
    loosen(pod["spec"])
    refusal = site.refusal("POST", f"/api/v1/namespaces/{namespace}/pods", query={"dryRun": "All"}, body=pod)
    assert refusal.status == 403
    assert "violates PodSecurity" in refusal.message
