"""How much cache a layout leaves: the formula, in GiB, and what it may decide. Pure.

`kv = utilisation * usable - weights_per_device - overhead`. The constants are ours, fitted to published
starts; measured starts (verified recipes) override them.
"""

from dataclasses import dataclass

from inference.core.catalogue import Accelerator, Layout, Recipe, Release, variant_bits

GIB = 1 << 30
DEFAULT_UTILISATION = 0.9
_UTILISATION_FLAG = "--gpu-memory-utilization"
_HUGE_PARAMS_B = 400
_SMALL_PARAMS_B = 8.5
_DENSE_SMALL_GIB, _DENSE_GIB = 2.5, 4.0
_HUGE_GIB = {
    "amd": 12.0,
    "ascend": 6.0,
    "kunlun": 6.0,
    "hygon": 6.0,
    "metax": 6.0,
    "mthreads": 8.0,
    "enflame": 5.0,
}
_HUGE_HOPPER_GIB, _HUGE_BLACKWELL_GIB = 10.0, 12.0
_BLACKWELL = ("nvidia-b", "nvidia-gb")


@dataclass(frozen=True, slots=True)
class Fit:
    """`kv_tokens_per_rank` fit beside the weights on one data-parallel rank; negative cache gives 0."""

    weights_gib_per_device: float
    kv_tokens_per_rank: int


def weights_per_device_gib(all_gib: float, routed_gib: float, layout: Layout) -> float:
    """Weights on one device: experts spread over every rank with EP, else each DP rank holds a copy."""
    plain = layout.tp * layout.pp
    if not layout.ep:
        return all_gib / plain
    return routed_gib / (plain * layout.dp) + (all_gib - routed_gib) / plain


def kv_tokens(kv_gib: float, kv_bytes: int, layout: Layout, kv_heads: int | None) -> int:
    """Tokens of cache on one DP rank. GQA (`kv_heads` given) shards over TP, MLA copies; PP divides."""
    shards = min(layout.tp, kv_heads) if kv_heads else 1
    return max(0, int(kv_gib * GIB * shards * layout.pp / kv_bytes))


def overhead_gib(release: Release, accelerator: Accelerator) -> float:
    """What activations, graphs and the runtime take beside weights and cache."""
    if release.params_b < _HUGE_PARAMS_B:
        return _DENSE_SMALL_GIB if release.params_b <= _SMALL_PARAMS_B else _DENSE_GIB
    if accelerator.id.startswith(_BLACKWELL):
        return _HUGE_BLACKWELL_GIB
    return _HUGE_GIB.get(accelerator.vendor, _HUGE_HOPPER_GIB)


def fit(release: Release, recipe: Recipe, accelerator: Accelerator) -> Fit | None:
    """What the formula says; None where a figure is missing or the release defies it."""
    if not release.formula or release.weights_gib is None or not release.kv_bytes or not accelerator.usable_gib:
        return None
    scale = variant_bits(release, recipe.variant) / release.native_bits
    weights = weights_per_device_gib(release.weights_gib * scale, release.routed_gib * scale, recipe.layout)
    budget = _utilisation(recipe) * accelerator.usable_gib - weights - overhead_gib(release, accelerator)
    return Fit(weights, kv_tokens(budget, release.kv_bytes, recipe.layout, release.kv_heads))


def refusal(release: Release, recipe: Recipe, accelerator: Accelerator) -> str | None:
    """Why the recipe must not run there, as a sentence; None admits it.

    A verified recipe was read in a published start and needs no formula. Everything else must show room
    for one request of its full length.
    """
    if recipe.verified:
        return None
    if not release.formula:
        return (
            f"recipe {recipe.id} is derived, and {release.id} is admitted by measured starts alone; "
            "pick a pool with a measured recipe"
        )
    size = fit(release, recipe, accelerator)
    if size is None:
        return f"recipe {recipe.id} is derived and {accelerator.name} has no measured memory to size it by"
    wanted = recipe.max_model_len or release.max_context
    if size.kv_tokens_per_rank < wanted:
        return (
            f"{accelerator.name} has room for {size.kv_tokens_per_rank} tokens of cache beside the weights, "
            f"and one request of recipe {recipe.id} may need {wanted}"
        )
    return None


def _utilisation(recipe: Recipe) -> float:
    if _UTILISATION_FLAG in recipe.args:
        return float(recipe.args[recipe.args.index(_UTILISATION_FLAG) + 1])
    return DEFAULT_UTILISATION
