"""Entries of a pools file, completed by nodes or refused by name."""

import pytest

from inference.core.pools import pool_fields
from kernel.problems import Problem

IMAGES = {"docker.io/vllm/vllm-openai": {"image": "docker.io/vllm/vllm-openai:v0.32.0", "version": "0.32.0"}}
ENTRY = {"name": "h200", "accelerator": "h200", "resource_name": "nvidia.com/gpu", "engine_images": IMAGES}
KNOWN = {"h200"}


def node(count=8, *, name="n", pool="h200", arch="amd64", taints=()):
    return {
        "metadata": {"name": name, "labels": {"moorage.dev/pool": pool, "kubernetes.io/arch": arch}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": {"nvidia.com/gpu": str(count)}},
    }


def test_what_nodes_tell_may_be_left_out():
    own = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    passing = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
    nodes = [node(taints=[own, passing]), node(4, name="small"), node(name="other", pool="other", arch="arm64")]
    fields = pool_fields(ENTRY, nodes, KNOWN)
    assert fields["nodes"] == {"n": 8, "small": 4}
    assert (fields["capacity"], fields["arch"]) == (12, "amd64")
    assert fields["node_selector"] == {"moorage.dev/pool": "h200"}
    assert fields["tolerations"] == [{"key": "nvidia.com/gpu", "effect": "NoSchedule", "operator": "Exists"}]


def test_what_the_entry_says_wins():
    said = {"capacity": 64, "arch": "arm64", "tolerations": [], "node_selector": {"a": "b"}, "runtime_class": "nvidia"}
    fields = pool_fields(ENTRY | said, [node(taints=[{"key": "k", "value": "v", "effect": "NoExecute"}])], KNOWN)
    assert {name: fields[name] for name in said} == said


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"accelerator": "h900"}, "accelerator"),
        ({"engine_images": {}}, "engine_images"),
        ({"engine_images": {"repository": "image:1"}}, "engine_images.repository"),
        ({"capacity": -1}, "capacity"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(change, field):
    with pytest.raises(Problem) as refused:
        pool_fields(ENTRY | change, [node()], KNOWN)
    assert refused.value.param == field
    assert "h200" in refused.value.detail


@pytest.mark.parametrize("nodes", [[], [node(), node(arch="arm64")]], ids=["none", "two"])
def test_an_architecture_that_nodes_do_not_agree_on_must_be_said(nodes):
    with pytest.raises(Problem, match="amd64 or arm64") as refused:
        pool_fields(ENTRY, nodes, KNOWN)
    assert refused.value.param == "arch"
