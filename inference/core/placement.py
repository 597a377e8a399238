"""Which pool runs a release: filters with a sentence per refusal, then a score. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inference.core import sizing
from inference.core.catalogue import Accelerator, Catalogue, Recipe, Release


@dataclass(frozen=True, slots=True)
class EngineImage:
    """What a pool runs for one image repository: the whole reference and the engine's version."""

    image: str
    version: str


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """A pool as placement sees it; `free` may be below zero after an operator shrank it."""

    name: str
    region: str
    accelerator: str
    capacity: int
    free: int
    images: dict[str, EngineImage]
    releases: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a pool was not taken: a stable CamelCase reason and a sentence for the tenant."""

    pool: str
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Placement:
    """`pool` and `recipe` are None where nothing fits; `waits` says that the cards are taken for now."""

    pool: PoolFacts | None
    recipe: Recipe | None
    waits: bool
    refusals: tuple[Refusal, ...]


def place(
    catalogue: Catalogue,
    release: Release,
    pools: Iterable[PoolFacts],
    *,
    region: str,
    replicas: int,
    accelerator: str | None = None,
    recipe_id: str | None = None,
) -> Placement:
    """The best pool and recipe (only `recipe_id`, where given). A pool that is full now is taken last: the
    endpoint waits.
    """
    refusals: list[Refusal] = []
    fitting: list[tuple[PoolFacts, Recipe]] = []
    for pool in sorted(pools, key=lambda pool: pool.name):
        found = _fit(catalogue, release, pool, region, replicas, accelerator, recipe_id)
        if isinstance(found, Refusal):
            refusals.append(found)
        else:
            fitting.extend((pool, recipe) for recipe in found)
    if not fitting:
        return Placement(None, None, waits=False, refusals=tuple(refusals))
    pool, recipe = min(fitting, key=lambda pair: _score(pair[0], pair[1], replicas))
    return Placement(pool, recipe, waits=_needs(recipe, replicas) > pool.free, refusals=tuple(refusals))


def _needs(recipe: Recipe, replicas: int) -> int:
    return recipe.cards * replicas


def _score(pool: PoolFacts, recipe: Recipe, replicas: int) -> tuple[bool, bool, int, int, str, str]:
    """Lowest wins: room now, a measured recipe, few cards, the fullest pool that still fits, names."""
    waits = _needs(recipe, replicas) > pool.free
    return (waits, not recipe.verified, recipe.cards, pool.free, pool.name, recipe.id)


def _fit(
    catalogue: Catalogue,
    release: Release,
    pool: PoolFacts,
    region: str,
    replicas: int,
    accelerator: str | None,
    recipe_id: str | None,
) -> Refusal | list[Recipe]:
    def refuse(reason: str, sentence: str) -> Refusal:
        return Refusal(pool.name, reason, sentence)

    if pool.region != region:
        return refuse("OtherRegion", f"pool {pool.name} is in region {pool.region}, not {region}")
    chip = catalogue.accelerators.get(pool.accelerator)
    if chip is None or not chip.servable:
        return refuse("NotServable", f"pool {pool.name} has {pool.accelerator}, which runs no engine of ours")
    if chip.beyond_restricted:
        return refuse(
            "NotRestricted",
            f"pool {pool.name} has {chip.name}, whose runtime takes {' and '.join(chip.beyond_restricted)}; "
            "tenants that share a region get no pod with that, so choose another accelerator",
        )
    if accelerator is not None and accelerator != pool.accelerator:
        return refuse("OtherAccelerator", f"pool {pool.name} has {chip.name}, not {accelerator}")
    if pool.releases is not None and release.id not in pool.releases:
        return refuse(
            "WeightsMissing",
            f"pool {pool.name} holds no weights of {release.id}; ask the operator to add them",
        )
    recipes = [
        recipe
        for recipe in catalogue.recipes_of(release.id)
        if pool.accelerator in recipe.accelerators and recipe_id in {None, recipe.id}
    ]
    if not recipes:
        named = f" {recipe_id}" if recipe_id else ""
        return refuse("NoRecipe", f"there is no recipe{named} for {release.id} on {chip.name}")
    refused: list[Refusal] = []
    fitting: list[Recipe] = []
    for recipe in recipes:
        why = _recipe_refusal(release, recipe, pool, chip, replicas)
        if why is None:
            fitting.append(recipe)
        else:
            refused.append(refuse(*why))
    return fitting or refused[0]


def _recipe_refusal(
    release: Release, recipe: Recipe, pool: PoolFacts, chip: Accelerator, replicas: int
) -> tuple[str, str] | None:
    if not recipe.is_ranked:
        return (
            "ManyNodes",
            f"recipe {recipe.id} spans {recipe.nodes} nodes by another program than the engine, which we do not run",
        )
    if recipe.placeholders:
        return "RecipeIncomplete", f"recipe {recipe.id} leaves {', '.join(recipe.placeholders)} open"
    if "--trust-remote-code" in recipe.args:
        return "RunsForeignCode", f"recipe {recipe.id} runs code out of the checkpoint, which we do not"
    engine = pool.images.get(recipe.image or "")
    if engine is None:
        return "NoEngineImage", f"pool {pool.name} has no engine image for recipe {recipe.id}"
    if version(engine.version) < version(release.min_version):
        return (
            "EngineTooOld",
            f"{release.id} needs engine {release.min_version}, and pool {pool.name} runs {engine.version}",
        )
    too_big = sizing.refusal(release, recipe, chip)
    if too_big is not None:
        return "DoesNotFit", too_big
    needed = _needs(recipe, replicas)
    if needed > pool.capacity:
        return (
            "PoolTooSmall",
            f"{replicas} times recipe {recipe.id} takes {needed} of {chip.name}, and pool {pool.name} has "
            f"{pool.capacity}; ask for fewer replicas",
        )
    return None


def whole_nodes_free(*, capacity: int, cards_per_node: int, grouped_cards: int, shared_nodes: int) -> int:
    """Nodes that nobody is on, of a pool whose nodes are alike.

    `grouped_cards` are those of replicas that span nodes; on `shared_nodes` there are others.
    """
    return max(0, (capacity - grouped_cards) // cards_per_node - shared_nodes)


def version(text: str) -> tuple[int, ...]:
    """A version as numbers: leading digits of each part, so that 0.30.0rc2 counts as 0.30.0."""
    numbers: list[int] = []
    for part in text.removeprefix("v").split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def sentences(refusals: Sequence[Refusal]) -> str:
    """All refusals in one line, for a problem's detail."""
    return "; ".join(refusal.sentence for refusal in refusals) or "there is no pool at all"
