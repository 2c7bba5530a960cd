"""The recipe and the model of a run at its workers: made and opened once each, and the same as here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.executor import Executor
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.pipeline.run_cache import Key, RunCache
from pdtrim_core.pipeline.run_keys import digest_of, keys_of, sources_of
from pdtrim_core.recipe.recipe import Recipe


class Opening:
    """Lets all workers open the model of a recipe, while this process opens it too."""

    def __init__(self, executor: Executor, recipe: Recipe) -> None:
        self._opened = executor.everywhere(opened_in_worker, recipe.to_data(), sources_of(recipe))

    def check(self, model: BlockModel) -> None:
        """Wait for all workers. Raises `PdtrimError` where one has other code or other weights, or cannot open the model."""
        for opened in self._opened:
            check_weights(model.exact_fingerprint, opened.result(), model.name)


def opened_in_worker(cache: RunCache, data: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Open the model of a recipe; return its exact fingerprint.

    Raises `PdtrimError` where this worker has other code than `sources` names, or cannot open the model.
    """
    recipe = recipe_in_worker(cache, data)
    own = sources_of(recipe)
    others = [f"{name} is {own.get(name, 'missing')}, and {code} where it was begun" for name, code in sources.items()]
    others = [told for told, name in zip(others, sources, strict=True) if own.get(name) != sources[name]]
    if others:
        raise PdtrimError(f"other code would measure there: {'; '.join(others)}: install the same versions everywhere")
    return model_in_worker(cache, recipe).exact_fingerprint


def recipe_in_worker(cache: RunCache, data: Mapping[str, Any]) -> Recipe:
    """Return a recipe with its parts, made of what is installed where this worker is."""
    key: Key = (f"recipe {digest_of((repr(data),))}",)
    return cache.latest("recipe", key, lambda: Recipe.from_data(data, where="the recipe"))


def model_in_worker(cache: RunCache, recipe: Recipe) -> BlockModel:
    """Return the model of a recipe, opened the first time that this worker is asked for it."""
    model = cache.latest("model", keys_of(recipe).model, lambda: open_model(recipe.model, recipe.host))
    model.compiles = recipe.settings.evaluation.compile
    return model


def check_weights(wanted: str, found: str, name: str) -> None:
    """Raise `PdtrimError` where the model of a worker has another exact fingerprint than that of this run."""
    if found != wanted:
        raise PdtrimError(
            f"a worker has other weights of {name} ({found[:12]}, here {wanted[:12]}): give all the same checkpoint"
        )
