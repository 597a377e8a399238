"""Placement: every refusal has its sentence, the best pool wins, and more room never hurts."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.core.placement import EngineImage, place, version
from tests.inference.values import CPU_IMAGE, CUDA_IMAGE, known, pool

CATALOGUE = known()
R1 = CATALOGUE.releases["deepseek-r1-0528"]
TINY = CATALOGUE.releases["tiny-deepseek"]


def put(*pools, release=R1, replicas=1, accelerator=None):
    return place(CATALOGUE, release, pools, region="here", replicas=replicas, accelerator=accelerator)


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"region": "elsewhere"}, "OtherRegion", "is in region elsewhere, not here"),
        ({"accelerator": "cambricon-mlu370-48"}, "NotServable", "runs no engine"),
        ({"accelerator": "intel-gaudi2-96"}, "NotRestricted", "takes hostIPC and capability SYS_NICE"),
        ({"releases": frozenset({"deepseek-v3"})}, "WeightsMissing", "holds no weights of deepseek-r1-0528"),
        ({"accelerator": "nvidia-l20-48"}, "NoRecipe", "no recipe for deepseek-r1-0528"),
        ({"accelerator": "nvidia-h100-80", "capacity": 8, "free": 8}, "PoolTooSmall", "takes 16 of"),
        ({"images": {}}, "NoEngineImage", "no engine image"),
        ({"images": {CUDA_IMAGE: EngineImage("x", "0.11.2")}}, "EngineTooOld", "needs engine 0.12.0"),
        ({"capacity": 4, "free": 4}, "PoolTooSmall", "takes 8 of"),
        ({"accelerator": "nvidia-h100-80", "nodes": (4, 4, 8)}, "PoolTooSmall", "takes 2 whole nodes of 8"),
    ],
)
def test_each_refusal_has_a_reason_and_a_sentence(changes, reason, said):
    placement = put(pool(**changes))
    assert placement.pool is None
    assert [refusal.reason for refusal in placement.refusals] == [reason]
    assert said in placement.refusals[0].sentence


def test_a_wanted_accelerator_leaves_other_pools_out():
    placement = put(pool(), accelerator="amd-mi300x-192")
    assert [refusal.reason for refusal in placement.refusals] == ["OtherAccelerator"]


def test_a_recipe_that_does_not_fit_is_refused_with_the_formula_sentence():
    release = CATALOGUE.releases["deepseek-v4-flash-0731"]
    placement = put(pool(accelerator="nvidia-h20-141"), release=release)
    assert [refusal.reason for refusal in placement.refusals] == ["DoesNotFit"]


def test_a_recipe_whose_nodes_another_program_starts_is_refused():
    [refusal] = put(pool(accelerator="cambricon-mlu590-80"), release=CATALOGUE.releases["deepseek-v3.2-exp"]).refusals
    assert (refusal.reason, "spans 4 nodes" in refusal.sentence) == ("ManyNodes", True)


def test_a_recipe_that_spans_nodes_is_placed_where_all_of_it_fits():
    placement = put(pool(accelerator="nvidia-h100-80"))
    assert (placement.recipe.nodes, placement.recipe.cards) == (2, 16)


def test_a_recipe_that_runs_code_out_of_the_checkpoint_is_refused():
    placement = put(pool(accelerator="amd-mi300x-192"), release=CATALOGUE.releases["deepseek-v3.2-exp"])
    assert [refusal.reason for refusal in placement.refusals] == ["RunsForeignCode"]


def test_a_full_pool_waits_rather_than_refuses():
    placement = put(pool(free=0))
    assert placement.pool is not None
    assert placement.waits


@pytest.mark.parametrize(("taken", "waits"), [(0, False), (4, False), (8, False), (9, True), (16, True)])
def test_a_recipe_that_spans_nodes_waits_for_whole_nodes_and_not_for_cards(taken, waits):
    spread = pool(accelerator="nvidia-h100-80", nodes=(4, 8, 4, 8, 8), capacity=32, free=32 - taken)
    assert put(spread).waits is (taken > 16)
    alike = pool(accelerator="nvidia-h100-80", nodes=(8, 8, 8), capacity=24, free=24 - taken)
    assert put(alike).waits is waits


def test_a_pool_with_room_beats_a_full_one():
    placement = put(pool("a", free=0), pool("b"))
    assert (placement.pool.name, placement.waits) == ("b", False)


def test_the_fullest_pool_that_fits_is_taken_so_that_large_ones_stay_whole():
    assert put(pool("a", free=16), pool("b", free=8)).pool.name == "b"


def test_the_test_model_lands_on_the_cpu():
    cpu = pool("cpu", accelerator="cpu", images={CPU_IMAGE: EngineImage("x", "0.32.0")})
    placement = put(cpu, pool(), release=TINY)
    assert (placement.pool.name, placement.recipe.id) == ("cpu", "tiny-deepseek-cpu")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.30.0rc2", (0, 30, 0)), ("v0.25.0", (0, 25, 0)), ("main", ()), ("0.9.2", (0, 9, 2))],
)
def test_versions_compare_as_numbers(text, numbers):
    assert version(text) == numbers


POOLS = st.lists(
    st.builds(
        lambda name, accelerator, capacity, taken: pool(
            name, accelerator=accelerator, capacity=capacity, free=capacity - taken
        ),
        st.sampled_from("abcdef"),
        st.sampled_from(["nvidia-h200-141", "nvidia-b200-180", "nvidia-l20-48", "cpu"]),
        st.integers(0, 32),
        st.integers(0, 32),
    ),
    max_size=5,
    unique_by=lambda item: item.name,
)


@settings(deadline=None)
@given(POOLS, st.integers(1, 4))
def test_one_more_pool_never_takes_a_place_away(pools, replicas):
    with_all = put(*pools, replicas=replicas)
    for index in range(len(pools)):
        fewer = put(*pools[:index], *pools[index + 1 :], replicas=replicas)
        assert with_all.pool is not None or fewer.pool is None
        assert not with_all.waits or fewer.pool is None or fewer.waits


@settings(deadline=None)
@given(POOLS, st.integers(1, 4), st.integers(1, 16))
def test_more_room_never_turns_a_place_into_a_wait(pools, replicas, more):
    before = put(*pools, replicas=replicas)
    wider = [replace(item, free=item.free + more, capacity=item.capacity + more) for item in pools]
    after = put(*wider, replicas=replicas)
    assert before.pool is None or after.pool is not None
    assert before.pool is None or before.waits or not after.waits


@settings(deadline=None)
@given(POOLS, st.integers(1, 4))
def test_the_order_of_pools_does_not_matter(pools, replicas):
    assert put(*pools, replicas=replicas) == put(*reversed(pools), replicas=replicas)
