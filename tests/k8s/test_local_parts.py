"""The small parts of the local cluster: files, capacity, refusals, command lines."""

import json
import threading
from decimal import Decimal

import pytest

from k8s.cluster import Ref
from k8s.desired import deployment_objects
from k8s.local import container, node
from k8s.local.admission import refusal
from k8s.local.store import BrokenFileError, Store
from tests.k8s.harness import POOL, SLOT, TENANT_OBJECTS, spec


def thing(name, value=0):
    return {"apiVersion": "v1", "kind": "Thing", "metadata": {"name": name, "namespace": "a"}, "value": value}


def ref(name):
    return Ref("v1", "Thing", "a", name)


def test_writers_on_many_threads_lose_nothing(tmp_path):
    def count_up():
        own = Store(tmp_path)
        for _ in range(20):
            with own.transaction() as turn:
                turn.put(thing("x", turn.items.get(ref("x"), {"value": 0})["value"] + 1))

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    items, version = Store(tmp_path).snapshot()
    assert (items[ref("x")]["value"], version) == (80, 80)


def test_a_transaction_that_changes_nothing_leaves_the_version(tmp_path):
    store = Store(tmp_path)
    with store.transaction() as turn:
        turn.drop(ref("absent"))
    assert store.version() == 0


def test_removals_are_remembered_for_a_while_only(tmp_path, monkeypatch):
    monkeypatch.setattr("k8s.local.store._GONE_KEPT", 3)
    store = Store(tmp_path)
    for number in range(5):
        with store.transaction() as turn:
            turn.put(thing(f"x{number}"))
            turn.drop(ref(f"x{number}"))
    assert store.since(0) is None
    recent = store.since(8)
    assert [(change.gone, change.version) for change in recent] == [(True, "10")]


def test_a_file_that_is_no_json_is_named(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "objects" / "Thing.a.x.json").write_text("{")
    with pytest.raises(BrokenFileError, match=r"Thing\.a\.x\.json"):
        store.snapshot()


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("2", "2"), ("1Ki", "1024"), ("1.5Gi", "1610612736"), ("3M", "3000000")],
)
def test_quantities_are_read_as_kubernetes_writes_them(text, value):
    assert node.quantity(text) == Decimal(value)


def test_a_quantity_that_is_none_is_refused():
    with pytest.raises(ValueError, match="many"):
        node.quantity("many")


def pod(**resources):
    return {"metadata": {"uid": "u"}, "spec": {"containers": [{"resources": {"limits": resources}}]}}


def test_a_pod_that_does_not_fit_names_everything_that_is_short():
    machine = node.node_object({SLOT: 1}, {"zone": "a"})
    assert node.misfit(pod(**{SLOT: "1"}), machine, []) is None
    text = node.misfit(pod(**{SLOT: "1"}, memory="9000Ti"), machine, [pod(**{SLOT: "1"})])
    assert text == f"0/1 nodes are available: 1 Insufficient memory, 1 Insufficient {SLOT}."
    assert "nvidia.com/gpu" in node.misfit(pod(**{"nvidia.com/gpu": "1"}), machine, [])


def test_a_selector_that_the_node_does_not_meet_is_told():
    elsewhere = pod()
    elsewhere["spec"]["nodeSelector"] = {"zone": "b"}
    assert "affinity/selector" in node.misfit(elsewhere, node.node_object({}, {"zone": "a"}), [])


def changed(path, value):
    """The plain Deployment with one field set."""
    [item] = json.loads(json.dumps(deployment_objects(spec(), POOL)))
    *parents, last = path
    place = item
    for key in parents:
        place = place[key]
    place[last] = value
    return item


TEMPLATE = ("spec", "template", "spec")
ENGINE = (*TEMPLATE, "containers", 0)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ((*TEMPLATE, "runtimeClassName"), "nvidia", "runtimeClassName"),
        ((*TEMPLATE, "initContainers"), [], "initContainers"),
        ((*TEMPLATE, "hostNetwork"), True, "hostNetwork"),
        ((*TEMPLATE, "volumes", 0), {"name": "shm", "hostPath": {"path": "/"}}, "volumes[0].hostPath"),
        ((*TEMPLATE, "containers"), [], "containers"),
        ((*ENGINE, "image"), "vllm/vllm-openai:v1", "vllm/vllm-openai:v1"),
        ((*ENGINE, "image"), "engine.moorage.local/../x:1", "image"),
        ((*ENGINE, "command"), [], "command"),
        ((*ENGINE, "ports"), [], "ports"),
        ((*ENGINE, "lifecycle"), {"preStop": {"exec": {"command": ["x"]}}}, "preStop.exec"),
        ((*ENGINE, "startupProbe", "httpGet", "port"), 1, "startupProbe"),
        (
            (*ENGINE, "env", 0),
            {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            "spec.nodeName",
        ),
        ((*ENGINE, "env", 0), {"name": "X", "valueFrom": {"secretKeyRef": {}}}, "secretKeyRef"),
        ((*ENGINE, "args"), ["a", 1], "args[1]"),
        (("spec", "replicas"), -1, "replicas"),
        (("spec", "replicas"), "1", "replicas"),
        (("spec", "paused"), True, "spec.paused"),
        (("spec", "strategy", "type"), "BlueGreen", "strategy"),
        (("spec", "strategy", "rollingUpdate"), {"maxSurge": 0, "maxUnavailable": 0}, "maxSurge"),
        (("spec", "strategy", "rollingUpdate"), {"maxSurge": "25%"}, "maxSurge"),
        (("spec", "selector", "matchLabels"), {"a": "b"}, "matchLabels"),
        (("metadata", "name"), "../../etc/x", "metadata.name"),
        (("metadata", "namespace"), "", "metadata.namespace"),
        (("kind",), "LeaderWorkerSet", "LeaderWorkerSet"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_by_name(path, value, named):
    assert named in refusal(changed(path, value))


def test_what_the_renderer_makes_for_this_machine_passes():
    items = [*TENANT_OBJECTS, *deployment_objects(spec(replicas=2), POOL)]
    assert [refusal(item) for item in items] == [None] * 6


def test_a_path_in_an_empty_dir_moves_into_the_pods_folder(tmp_path):
    [item] = deployment_objects(spec(args=("/scratch/model", "/scratchy", "--tmp=$(HOME)")), POOL)
    (tmp_path / "engines" / "fake-1" / "bin").mkdir(parents=True)
    program = tmp_path / "engines" / "fake-1" / "bin" / "serve"
    program.touch(mode=0o755)
    made = {"metadata": {"name": "p", "namespace": "n", "uid": "u-1"}, "spec": item["spec"]["template"]["spec"]}
    launch = container.launch(made, address="127.0.0.9", engines=tmp_path / "engines", folder=tmp_path / "pod")
    scratch = str(tmp_path / "pod" / "volumes" / "scratch")
    assert launch.argv[:4] == (str(program), f"{scratch}/model", "/scratchy", f"--tmp={scratch}")
    assert launch.env["HOME"] == scratch
