"""The catalogue: carried-over data is whole, and a malformed entry is refused by name."""

import copy
import json

import pytest

from inference.catalogue_files import LOCAL_RECIPE, LOCAL_RELEASE, with_local_model
from inference.core.catalogue import CatalogueError, parse, variant_bits
from tests.inference.values import documents, known


def test_the_catalogue_of_the_repository_is_well_formed():
    catalogue = known()
    assert {"deepseek-r1-0528", "deepseek-v4-flash-0731", "tiny-deepseek"} <= set(catalogue.releases)
    assert catalogue.recipes_of("tiny-deepseek")[0].accelerators == ("cpu",)
    assert all(entry.source for entry in (*catalogue.releases.values(), *catalogue.recipes.values()))


def test_the_test_model_says_so():
    release = known().releases["tiny-deepseek"]
    assert release.test
    assert "TEST MODEL" in release.notice
    assert not any(item.test for item in known().releases.values() if item.id != "tiny-deepseek")


def test_a_recipe_carries_probe_and_termination_profiles():
    recipe = known().recipes["tiny-deepseek-cpu"]
    assert recipe.startup_budget_s == 900
    assert (recipe.shutdown_timeout_s, recipe.pre_stop_s) == (30, 5)
    assert recipe.shm_bytes == 64 << 20


def test_what_every_pod_knows_by_itself_is_filled_in_or_left_out():
    recipes = known().recipes
    assert recipes["r1-h100-16-tppp"].env == {}
    assert recipes["r1-w8a8-a2-2node"].env["HCCL_IF_IP"] == "$(POD_IP)"
    assert recipes["r1-w8a8-a2-2node"].placeholders == ()


@pytest.mark.parametrize(
    ("document", "entry", "field", "value", "said"),
    [
        (0, "deepseek-r1", "max_context", "lots", "release 'deepseek-r1': max_context"),
        (0, "deepseek-r1", "verified", "yes", "release 'deepseek-r1': verified"),
        (0, "deepseek-r1", "id", "Deep Seek", "release 'Deep Seek': id"),
        (1, "r1-h200-8-tep", "model", "gpt-9", "recipe 'r1-h200-8-tep': model"),
        (2, "nvidia-h20-96", "vendor", "abacus", "accelerator 'nvidia-h20-96': vendor"),
        (1, "r1-h200-8-tep", "accelerators", ["abacus"], "recipe 'r1-h200-8-tep': accelerators"),
        (1, "r1-h200-8-tep", "args", ["--tp", 8], "recipe 'r1-h200-8-tep': args"),
        (1, "r1-h200-8-tep", "shm", "much", "recipe 'r1-h200-8-tep': shm"),
        (1, "r1-h200-8-tep", "layout", {"tp": 8}, "recipe 'r1-h200-8-tep': layout"),
        (1, "r1-h200-8-tep", "probe_profile", "quick", "recipe 'r1-h200-8-tep': probe_profile"),
        (1, "r1-h200-8-tep", "nodes", 0, "recipe 'r1-h200-8-tep': nodes"),
        (2, "nvidia-h100-80", "vendor", "", "accelerator 'nvidia-h100-80': vendor"),
        (2, "nvidia-h100-80", "usable_gib", -1, "accelerator 'nvidia-h100-80': usable_gib"),
    ],
)
def test_a_malformed_entry_is_refused_by_name(document, entry, field, value, said):
    files = copy.deepcopy(documents())
    entries = files[document][("models", "recipes", "accelerators")[document]]
    next(item for item in entries if item["id"] == entry)[field] = value
    with pytest.raises(CatalogueError, match=said.replace("(", r"\(")):
        parse(*files)


def test_an_id_that_occurs_twice_is_refused():
    files = documents()
    files[0]["models"].append(files[0]["models"][0])
    with pytest.raises(CatalogueError, match="release 'deepseek-r1': id occurs twice"):
        parse(*files)


@pytest.mark.parametrize(
    ("variant", "bits"),
    [
        ("native", 8),
        ("bf16 (converted)", 16),
        ("w8a8-mtp-QuaRot", 8),
        ("awq int4", 4),
        ("nvfp4", 4),
        ("w4a8-mtp", 4),
    ],
)
def test_a_variant_says_how_many_bits_a_weight_has(variant, bits):
    assert variant_bits(known().releases["deepseek-r1"], variant) == bits


def test_an_operators_checkpoint_becomes_a_release_with_the_cpu_recipe(tmp_path):
    config = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 1024}
    (tmp_path / "config.json").write_text(json.dumps(config))
    catalogue = with_local_model(known(), tmp_path)
    release, recipe = catalogue.releases[LOCAL_RELEASE], catalogue.recipes[LOCAL_RECIPE]
    assert (release.architecture, release.max_context, release.path) == (
        "Qwen2ForCausalLM",
        1024,
        str(tmp_path),
    )
    assert recipe.max_model_len == 1024
    assert recipe.args[recipe.args.index("--max-model-len") + 1] == "1024"


def test_a_checkpoint_without_a_config_is_refused(tmp_path):
    with pytest.raises(CatalogueError, match="local-model"):
        with_local_model(known(), tmp_path)
