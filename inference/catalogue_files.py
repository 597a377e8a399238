"""Reads the catalogue's files, and the operator's own checkpoint as one release more."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import yaml
from django.conf import settings

from inference.core.catalogue import Catalogue, CatalogueError, parse

FOLDER = Path(__file__).parent / "catalogue"
LOCAL_RELEASE = "local-model"
LOCAL_RECIPE = "local-model-cpu"
_TEMPLATE_RELEASE = "tiny-deepseek"
_TEMPLATE_RECIPE = "tiny-deepseek-cpu"


@cache
def catalogue() -> Catalogue:
    """The catalogue of this process. CatalogueError names the entry that is malformed."""
    documents = [
        yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("models", "recipes", "accelerators")
    ]
    known = parse(*documents)
    return with_local_model(known, Path(settings.LOCAL_MODEL)) if settings.LOCAL_MODEL else known


def with_local_model(known: Catalogue, folder: Path) -> Catalogue:
    """The catalogue with the checkpoint in `folder` as release `local-model`, run by the CPU recipe.

    CatalogueError where its config.json is absent or says no architecture or context length.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        architecture, context = config["architectures"][0], int(config["max_position_embeddings"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CatalogueError(
            f"release '{LOCAL_RELEASE}': {folder}/config.json must name architectures and "
            f"max_position_embeddings ({error!r})"
        ) from error
    template, recipe = known.releases[_TEMPLATE_RELEASE], known.recipes[_TEMPLATE_RECIPE]
    release = replace(
        template,
        id=LOCAL_RELEASE,
        repo=folder.name,
        family="local",
        status="local",
        architecture=architecture,
        licence="",
        max_context=context,
        test=False,
        notice="The operator's own checkpoint, not checked by us.",
        verified=False,
        source=(str(folder / "config.json"),),
        path=str(folder.resolve()),
        weights_gib=None,
        kv_bytes=None,
        params_b=0.0,
        generation_defaults={},
    )
    length = min(context, recipe.max_model_len or context)
    own = replace(
        recipe,
        id=LOCAL_RECIPE,
        release=LOCAL_RELEASE,
        args=_with_length(recipe.args, length),
        max_model_len=length,
        reservable=None,
    )
    return Catalogue(
        {**known.releases, LOCAL_RELEASE: release}, {**known.recipes, LOCAL_RECIPE: own}, known.accelerators
    )


def _with_length(args: tuple[str, ...], tokens: int) -> tuple[str, ...]:
    at = args.index("--max-model-len") + 1
    return (*args[:at], str(tokens), *args[at + 1 :])
