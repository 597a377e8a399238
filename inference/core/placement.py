"""Which pool runs a release: filters with a sentence per refusal, then a score. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
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
    """A pool as placement sees it; `free` may be below zero after an operator shrank it.

    `nodes` are the accelerators of each node; where those that are taken lie, a tenant may not know.
    """

    name: str
    region: str
    accelerator: str
    capacity: int
    free: int
    images: dict[str, EngineImage]
    releases: frozenset[str] | None
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a pool was not taken: a stable CamelCase reason and a sentence for the tenant."""

    pool: str
    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Placement:
    """`pool` and `recipe` are None where nothing fits; `waits` says that the cards or whole nodes are taken for now."""

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
    return Placement(pool, recipe, waits=_waits(pool, recipe, replicas), refusals=tuple(refusals))


def _needs(recipe: Recipe, replicas: int) -> int:
    return recipe.cards * replicas


def _waits(pool: PoolFacts, recipe: Recipe, replicas: int) -> bool:
    if recipe.nodes > 1:
        free = whole_nodes_at_best(pool.nodes, taken=pool.capacity - pool.free, cards=recipe.cards_per_node)
        return recipe.nodes * replicas > free
    return _needs(recipe, replicas) > pool.free


def _score(pool: PoolFacts, recipe: Recipe, replicas: int) -> tuple[bool, bool, int, int, str, str]:
    """Lowest wins: room now, a measured recipe, few cards, the fullest pool that still fits, names."""
    return (_waits(pool, recipe, replicas), not recipe.verified, recipe.cards, pool.free, pool.name, recipe.id)


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
    nodes, fitting = recipe.nodes * replicas, with_room(pool.nodes, recipe.cards_per_node)
    if recipe.nodes > 1 and nodes > fitting:
        return (
            "PoolTooSmall",
            f"{replicas} times recipe {recipe.id} takes {nodes} whole nodes of {recipe.cards_per_node} {chip.name}, "
            f"and pool {pool.name} has {fitting}; ask for fewer replicas",
        )
    return None


def whole_nodes(nodes: Mapping[str, int], *, taken: Collection[str], unplaced: int) -> tuple[int, ...]:
    """Accelerators of each node that nobody is on, largest first; `nodes` has them by name.

    `unplaced` nodes beside those that are `taken` are somebody's, nobody knows which: the largest, to be safe.
    """
    free = sorted((cards for name, cards in nodes.items() if name not in taken), reverse=True)
    return tuple(free[unplaced:])


def whole_nodes_at_best(nodes: Sequence[int], *, taken: int, cards: int) -> int:
    """Nodes of so many accelerators that nobody need be on while `taken` are in use, wherever those lie."""
    fitting = sorted(offered for offered in nodes if offered >= cards)
    taken -= sum(offered for offered in nodes if offered < cards)
    while fitting and taken > 0:
        taken -= fitting.pop()
    return len(fitting)


def with_room(nodes: Iterable[int], cards: int) -> int:
    """How many nodes have so many accelerators."""
    return sum(offered >= cards for offered in nodes)


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
