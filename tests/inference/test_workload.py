"""From catalogue to manifests: every recipe that can run makes a manifest that the cluster takes."""

import json
from dataclasses import replace
from uuid import UUID

import pytest

from inference.core.workload import weights_path, workload
from k8s.desired import PoolBinding, deployment_objects
from k8s.engine_pod import LEADER_ADDRESS, RANK
from k8s.local import admission
from tests.inference.values import known

CATALOGUE = known()
SINGLE_NODE = [recipe for recipe in CATALOGUE.recipes.values() if recipe.nodes == 1 and not recipe.placeholders]

SPREAD = [recipe for recipe in CATALOGUE.recipes.values() if recipe.nodes > 1 and recipe.is_ranked]


def spec(recipe, **changes):
    facts = {
        "tenant_id": UUID(int=1),
        "endpoint_id": UUID(int=2),
        "deployment_id": UUID(int=3),
        "generation": 1,
        "replicas": 1,
        "release": CATALOGUE.releases[recipe.release],
        "recipe": recipe,
        "image": "engine.moorage.local/vllm-cpu:0.32.0",
        "weights_root": "/weights",
        "counts_cards": True,
    }
    return workload(**{**facts, **changes})


@pytest.mark.parametrize("recipe", SINGLE_NODE, ids=lambda recipe: recipe.id)
def test_every_complete_single_node_recipe_becomes_a_manifest(recipe):
    found = spec(recipe)
    deployment = deployment_objects(found, PoolBinding(name="p", arch="amd64", resource_name="nvidia.com/gpu"))[0]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(recipe.cards)
    assert container["args"][:3] == [f"/weights/{recipe.release}", "--served-model-name", recipe.release]


@pytest.mark.parametrize("recipe", SPREAD, ids=lambda recipe: recipe.id)
def test_every_recipe_over_several_nodes_tells_its_ranks_apart(recipe):
    found = spec(recipe)
    groups = deployment_objects(found, PoolBinding(name="p", arch="amd64", resource_name="nvidia.com/gpu"))[0]
    template = groups["spec"]["leaderWorkerTemplate"]
    leader, worker = (template[f"{role}Template"]["spec"]["containers"][0] for role in ("leader", "worker"))
    assert (groups["kind"], template["size"]) == ("LeaderWorkerSet", recipe.nodes)
    assert leader["resources"]["limits"]["nvidia.com/gpu"] == str(recipe.cards_per_node)
    assert LEADER_ADDRESS in leader["args"]
    assert "--headless" in worker["args"]
    assert "--headless" not in leader["args"]
    for flags in (leader["args"], worker["args"]):
        assert all(flags.count(flag) <= 1 for flag in ("--nnodes", "--node-rank", "--data-parallel-start-rank"))


@pytest.mark.parametrize(
    ("recipe", "every", "more"),
    [
        ("r1-h100-16-tppp", f"--nnodes 2 --node-rank {RANK} --master-addr {LEADER_ADDRESS}", "--headless"),
        ("r1-w8a8-a2-2node", f"--data-parallel-address {LEADER_ADDRESS}", "--headless --data-parallel-start-rank 2"),
        (
            "v4-pro-w4a8-a2-4node",
            f"--data-parallel-address {LEADER_ADDRESS}",
            f"--headless --data-parallel-start-rank {RANK}",
        ),
    ],
)
def test_pipelines_count_nodes_and_data_parallel_replicas_count_ranks(recipe, every, more):
    found = spec(CATALOGUE.recipes[recipe])
    assert " ".join(found.args).endswith(every)
    assert " ".join(found.worker_args) == more


def test_this_machine_is_one_node_and_says_so():
    groups, *_ = deployment_objects(spec(SPREAD[0]), PoolBinding(name="p", arch="amd64"))
    assert "LeaderWorkerSet is not known on this machine" in admission.refusal(groups)


def test_the_test_models_manifest_runs_on_this_machine():
    recipe = CATALOGUE.recipes["tiny-deepseek-cpu"]
    found = spec(recipe, counts_cards=False)
    deployment = deployment_objects(found, PoolBinding(name="p", arch="amd64"))[0]
    assert admission.refusal(deployment) is None
    assert found.accelerator_count == 0


def test_variables_that_the_platform_sets_are_left_out_of_published_recipes():
    recipe = CATALOGUE.recipes["v4-pro-h200-8"]
    assert "VLLM_ENGINE_READY_TIMEOUT_S" in recipe.env
    assert "VLLM_ENGINE_READY_TIMEOUT_S" not in spec(recipe).env
    assert "MTHREADS_VISIBLE_DEVICES" not in spec(CATALOGUE.recipes["v4-flash-s5000-8"]).env


def test_sampling_defaults_reach_the_engine_and_advice_does_not():
    recipe = CATALOGUE.recipes["r1-h200-8-tep"]
    args = spec(recipe).args
    assert json.loads(args[args.index("--override-generation-config") + 1]) == {"temperature": 0.6, "top_p": 0.95}


def test_an_operators_checkpoint_is_read_where_it_lies():
    release = replace(CATALOGUE.releases["tiny-deepseek"], path="/models/mine", generation_defaults={})
    assert weights_path(release, "/weights") == "/models/mine"
    recipe = CATALOGUE.recipes["tiny-deepseek-cpu"]
    assert "--override-generation-config" not in spec(recipe, release=release).args
