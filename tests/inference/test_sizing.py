"""The sizing formula against the tables that were worked out by hand, and what it may decide."""

import pytest

from inference.core import sizing
from inference.core.catalogue import Layout
from tests.inference.values import documents, known

CATALOGUE = known()
MINIMUM_NODES = documents()[1]["derived_min_nodes_671b"]["rows"]
WEIGHTS_GIB = {
    "fp8 or int8 w8a8": (626.7, 609.0),
    "bf16": (1253.4, 1218.0),
    "awq int4": (337.6, 304.5),
    "w4a8": (338.4, 304.5),
}


@pytest.mark.parametrize("row", MINIMUM_NODES, ids=lambda row: f"{row['accelerator']}-{row['weights']}")
def test_the_table_of_the_671b_model_is_reproduced(row):
    tp, pp = (int(part[2:]) for part in row["layout"].split())
    layout = Layout(1, tp, pp, ep=True)
    chip = CATALOGUE.accelerators[row["accelerator"]]
    weights = sizing.weights_per_device_gib(*WEIGHTS_GIB[row["weights"]], layout)
    assert weights == pytest.approx(row["weights_gib_per_device"], abs=0.15)
    budget = row["utilisation"] * chip.usable_gib - row["weights_gib_per_device"] - row["overhead_gib"]
    assert sizing.kv_tokens(budget, 70272, layout, None) == pytest.approx(row["kv_tokens"], rel=0.03)


@pytest.mark.parametrize(
    ("recipe", "accelerator", "weights", "tokens"),
    [
        ("r1-h200-8-tep", "nvidia-h200-141", 78.3, 581_000),
        ("r1-h200-8-dep", "nvidia-h200-141", 93.8, 345_000),
        ("r1-mi300x-8", "amd-mi300x-192", 78.3, 1_260_000),
        ("r1-h100-16-tppp", "nvidia-h100-80", 39.2, 687_000),
        ("r1-w8a8-a3-1node", "ascend-910c-128", 42.5, 159_000),
        ("distill-32b-2card", "nvidia-l20-48", 30.5, 49_000),
    ],
)
def test_published_layouts_come_out_as_worked(recipe, accelerator, weights, tokens):
    found = CATALOGUE.recipes[recipe]
    size = sizing.fit(CATALOGUE.releases[found.release], found, CATALOGUE.accelerators[accelerator])
    assert size.weights_gib_per_device == pytest.approx(weights, abs=0.1)
    assert size.kv_tokens_per_rank == pytest.approx(tokens, rel=0.01)


def test_v4_is_never_admitted_by_formula():
    recipe = CATALOGUE.recipes["v4-flash-h20-4"]
    release, chip = CATALOGUE.releases[recipe.release], CATALOGUE.accelerators["nvidia-h20-141"]
    assert sizing.fit(release, recipe, chip) is None
    assert "measured starts alone" in sizing.refusal(release, recipe, chip)


def test_a_measured_recipe_needs_no_formula():
    recipe = CATALOGUE.recipes["v4-pro-h200-8"]
    assert recipe.verified
    assert sizing.refusal(CATALOGUE.releases[recipe.release], recipe, CATALOGUE.accelerators["nvidia-h200-141"]) is None


def test_a_derived_recipe_without_room_for_one_request_is_refused_with_figures():
    recipe = CATALOGUE.recipes["r1-h100-16-dep"]
    why = sizing.refusal(CATALOGUE.releases[recipe.release], recipe, CATALOGUE.accelerators["nvidia-h100-80"])
    assert "89807 tokens" in why
    assert "163840" in why


def test_an_unmeasured_card_is_not_sized():
    recipe = CATALOGUE.recipes["r1-gaudi2-8"]
    why = sizing.refusal(CATALOGUE.releases[recipe.release], recipe, CATALOGUE.accelerators["intel-gaudi2-96"])
    assert "no measured memory" in why
