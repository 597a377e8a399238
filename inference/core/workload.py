"""From catalogue to cluster: the WorkloadSpec of one recipe on one pool. Pure."""

import json
from uuid import UUID

from inference.core.catalogue import Recipe, Release
from k8s.desired import WorkloadSpec
from k8s.engine_pod import LEADER_ADDRESS, RANK

# How published recipes write down which node is which: a manifest says it anew.
# Every piece of every answer carries its count, whoever asks, and the last one what was cached: the bill rests on it.
_COUNTING = ("--enable-force-include-usage", "--enable-prompt-tokens-details")
_RANK_FLAGS = ("--nnodes", "--node-rank", "--master-addr", "--data-parallel-address", "--data-parallel-start-rank")
# What of a release's defaults is a sampling parameter of the engine; the rest is advice for people.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def weights_path(release: Release, weights_root: str) -> str:
    """The checkpoint's folder as an engine sees it."""
    return release.path or f"{weights_root.rstrip('/')}/{release.id}"


def generation_args(release: Release) -> tuple[str, ...]:
    """Flags that make the release's sampling defaults the engine's: they hold where a request names none."""
    values = {name: release.generation_defaults[name] for name in _SAMPLING if name in release.generation_defaults}
    return ("--override-generation-config", json.dumps(values, sort_keys=True)) if values else ()


def _is_platforms(name: str) -> bool:
    """Variables that published recipes set by hand: a device plugin and the manifest say them here."""
    return name.endswith(("_VISIBLE_DEVICES", "_VISIBLE_MODULES")) or name == "VLLM_ENGINE_READY_TIMEOUT_S"


def _without_ranks(args: tuple[str, ...]) -> tuple[str, ...]:
    """The flags without those of `_RANK_FLAGS` and their values."""
    flags = ("", *args)
    return tuple(arg for before, arg in zip(flags, args, strict=False) if not {before, arg} & set(_RANK_FLAGS))


def _ranks(recipe: Recipe) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Flags by which the nodes of one replica find each other: of all of them, and what workers add."""
    if recipe.nodes == 1:
        return (), ()
    if recipe.layout.dp == 1:
        every = ("--nnodes", str(recipe.nodes), "--node-rank", RANK, "--master-addr", LEADER_ADDRESS)
        return every, ("--headless",)
    # The first of a worker's own ranks: Kubernetes cannot multiply, but of two nodes only one is a worker.
    local = recipe.layout.dp // recipe.nodes
    first = RANK if local == 1 else str(local)
    return ("--data-parallel-address", LEADER_ADDRESS), ("--headless", "--data-parallel-start-rank", first)


def workload(
    *,
    tenant_id: UUID,
    endpoint_id: UUID,
    deployment_id: UUID,
    generation: int,
    replicas: int,
    release: Release,
    recipe: Recipe,
    image: str,
    weights_root: str,
    counts_cards: bool,
) -> WorkloadSpec:
    """What the recipe's engines are started with; they answer to the release's id.

    `counts_cards` is False where the pool has no accelerator resource to ask for.
    """
    rank_args, worker_args = _ranks(recipe)
    return WorkloadSpec(
        tenant_id=tenant_id,
        endpoint_id=endpoint_id,
        deployment_id=deployment_id,
        generation=generation,
        replicas=replicas,
        image=image,
        args=(
            weights_path(release, weights_root),
            "--served-model-name",
            release.id,
            *_COUNTING,
            *generation_args(release),
            *_without_ranks(recipe.args),
            *rank_args,
        ),
        env={name: value for name, value in recipe.env.items() if not _is_platforms(name)},
        cpu_millis=recipe.cpu_millis,
        memory_bytes=recipe.memory_bytes,
        accelerator_count=recipe.cards_per_node if counts_cards else 0,
        shm_bytes=recipe.shm_bytes,
        startup_budget_s=recipe.startup_budget_s,
        startup_period_s=recipe.startup_period_s,
        shutdown_timeout_s=recipe.shutdown_timeout_s,
        pre_stop_s=recipe.pre_stop_s,
        nodes=recipe.nodes,
        worker_args=worker_args,
    )
