"""Manifests: golden files, and what must hold for any of them."""

import dataclasses
import json

import pytest

from k8s.cluster import Ref
from k8s.desired import (
    DEPLOYMENT_LABEL,
    ROLE_LABEL,
    SPEC_HASH_LABEL,
    deployment_objects,
    deployment_refs,
    sized_refs,
)
from tests.k8s.golden_cases import FOLDER, POOLS, WORKLOADS, documents, workload


def deployment(spec, pool=POOLS["nvidia"]):
    return deployment_objects(spec, pool)[0]


def pool_of(name):
    return POOLS.get(name, POOLS["nvidia"])


def engine(spec, pool=POOLS["nvidia"]):
    return deployment(spec, pool)["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("name", sorted(documents()))
def test_a_manifest_equals_its_golden_file(name):
    assert documents()[name] == (FOLDER / name).read_text()


def test_no_golden_file_is_left_over():
    assert {path.name for path in FOLDER.iterdir()} == set(documents())


def test_the_order_of_a_mapping_does_not_reach_the_bytes():
    spec = workload(env={"A": "1", "B": "2"})
    turned = workload(env={"B": "2", "A": "1"})
    assert json.dumps(deployment_objects(spec, POOLS["nvidia"])) == json.dumps(
        deployment_objects(turned, POOLS["nvidia"])
    )


@pytest.mark.parametrize("change", [{"generation": 9}, {"replicas": 2}, {"surge": True}])
def test_what_restarts_no_engine_leaves_the_spec_hash(change):
    before, after = (deployment(workload(**fields)) for fields in ({}, change))
    assert before["spec"]["template"] == after["spec"]["template"]
    assert before["metadata"]["labels"][SPEC_HASH_LABEL] == after["metadata"]["labels"][SPEC_HASH_LABEL]


@pytest.mark.parametrize("change", [{"args": ("/other",)}, {"env": {}}, {"shutdown_timeout_s": 9}, {"image": "b"}])
def test_what_restarts_engines_changes_the_spec_hash(change):
    before, after = (deployment(workload(**fields)) for fields in ({}, change))
    assert before["metadata"]["labels"][SPEC_HASH_LABEL] != after["metadata"]["labels"][SPEC_HASH_LABEL]
    assert before["spec"]["selector"] == after["spec"]["selector"]


@pytest.mark.parametrize("budget_s", [1, 59, 60, 61, 900, 7200])
@pytest.mark.parametrize("drain_s", [0, 30, 300])
def test_budgets_and_graces_agree_with_each_other(budget_s, drain_s):
    spec = workload(startup_budget_s=budget_s, shutdown_timeout_s=drain_s)
    pod = deployment(spec)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    env = {item["name"]: item.get("value") for item in container["env"]}
    probe = container["startupProbe"]
    assert env["VLLM_ENGINE_READY_TIMEOUT_S"] == str(budget_s)
    assert budget_s <= probe["periodSeconds"] * probe["failureThreshold"] < budget_s + probe["periodSeconds"]
    assert deployment(spec)["spec"]["progressDeadlineSeconds"] > budget_s
    told_s = int(container["args"][container["args"].index("--shutdown-timeout") + 1])
    pre_stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert told_s == drain_s
    assert pod["terminationGracePeriodSeconds"] > pre_stop_s + told_s


def test_an_engine_that_cannot_drain_is_waited_for_within_its_grace():
    spec = workload(drains_itself=False)
    container = engine(spec)
    assert "--shutdown-timeout" not in container["args"]
    source = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    compile(source, "preStop", "exec")
    assert "vllm:num_requests_running" in source
    assert str(spec.shutdown_timeout_s) in source


def test_shared_memory_counts_against_the_pods_memory():
    limits = engine(workload(memory_bytes=4 << 30, shm_bytes=1 << 30))["resources"]["limits"]
    assert limits["memory"] == "5120Mi"


@pytest.mark.parametrize("arg", ["--host", "--host=0.0.0.0", "--port", "--shutdown-timeout"])
def test_flags_that_the_manifest_sets_are_refused(arg):
    with pytest.raises(ValueError, match=arg.partition("=")[0]):
        deployment(workload(args=("/m", arg)))


@pytest.mark.parametrize("name", ["POD_IP", "HOME", "VLLM_ENGINE_READY_TIMEOUT_S", "NVIDIA_VISIBLE_DEVICES"])
def test_variables_that_the_manifest_or_the_device_plugin_sets_are_refused(name):
    with pytest.raises(ValueError, match=name):
        deployment(workload(env={name: "all"}))


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_only_several_replicas_have_a_disruption_budget(replicas):
    spec = workload(replicas=replicas)
    items = deployment_objects(spec, POOLS["nvidia"])
    budget = sized_refs(spec.tenant_id, spec.deployment_id)
    assert tuple(Ref.of(item) for item in items[1:]) == (budget if replicas > 1 else ())


@pytest.mark.parametrize("name", sorted(WORKLOADS))
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_delete_names_every_object_that_was_applied(name, replicas):
    spec = dataclasses.replace(WORKLOADS[name], replicas=replicas)
    refs = deployment_refs(spec.tenant_id, spec.deployment_id)
    assert {Ref.of(item) for item in deployment_objects(spec, pool_of(name))} <= set(refs)


def test_a_group_is_headed_by_the_one_who_answers_and_goes_by_name():
    groups, service, policy, _ = deployment_objects(WORKLOADS["two-nodes"], POOLS["nvidia"])
    template = groups["spec"]["leaderWorkerTemplate"]
    leader, worker = (template[f"{role}Template"] for role in ("leader", "worker"))
    assert (groups["spec"]["startupPolicy"], template["size"]) == ("LeaderCreated", 2)
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert service["spec"]["selector"].items() <= leader["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= worker["metadata"]["labels"].items()
    among = policy["spec"]["podSelector"]
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": among}]}]
    assert policy["spec"]["egress"] == [{"to": [{"podSelector": among}]}]
    assert among["matchLabels"].keys() == {DEPLOYMENT_LABEL}
    assert {item["metadata"]["labels"][ROLE_LABEL] for item in (leader, worker)} == {"leader", "worker"}


def test_a_worker_serves_nothing_and_outstays_what_its_leader_may_still_finish():
    groups, *_ = deployment_objects(WORKLOADS["two-nodes"], POOLS["nvidia"])
    template = groups["spec"]["leaderWorkerTemplate"]
    leader, worker = (template[f"{role}Template"]["spec"] for role in ("leader", "worker"))
    [container] = worker["containers"]
    assert not {"ports", "startupProbe", "readinessProbe", "livenessProbe"} & container.keys()
    assert container["args"][-1] == "--headless"
    assert "--host" not in container["args"]
    drain_s = leader["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] + 300
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == drain_s
    assert worker["terminationGracePeriodSeconds"] > drain_s


@pytest.mark.parametrize("name", sorted(POOLS))
def test_every_pod_meets_the_restricted_standard(name):
    """Kubernetes' own list of the restricted Pod Security Standard."""
    pod = deployment(WORKLOADS[name], POOLS[name])["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    allowed = {"name", "emptyDir", "persistentVolumeClaim", "csi", "ephemeral", "configMap", "secret", "projected"}
    assert all(set(volume) <= allowed for volume in pod["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["automountServiceAccountToken"] is False


def test_a_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        workload().replicas = 5
