"""The steps that a run of a recipe will have, known before it begins."""

from __future__ import annotations

from collections.abc import Iterator

from pdtrim_core.errors import blame
from pdtrim_core.recipe.recipe import Recipe


def steps_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the steps in order; a run may leave one out or repeat some."""
    return tuple(_steps(recipe))


def merges_first(recipe: Recipe) -> bool:
    """Tell whether a recipe merges pairs of blocks, and trains them in front of its search."""
    return recipe.settings.prune.merges and recipe.distiller.train == "before-search"


def _steps(recipe: Recipe) -> Iterator[str]:
    yield from ("open the model", "calibrate")
    with blame(recipe.host.label_of(recipe.objective)):
        answers = bool(recipe.objective.answer_length)
    if answers:
        yield "let the dense model answer"
    if recipe.pruner is not None:
        yield from ("prune", "measure the dense model")
    else:
        yield from _search_steps(recipe)
    if recipe.pruner is None or not recipe.pruner.replaces_model:
        yield "split the stages"
    if recipe.recoveries:
        yield "recover"
    if recipe.quantizer is not None:
        yield "quantise"
    if recipe.kv_selector is not None:
        yield "select K/V"
    yield "evaluate"
    if recipe.settings.evaluation.fidelity and not recipe.streams:
        yield "fidelity"
    yield "write"


def _search_steps(recipe: Recipe) -> Iterator[str]:
    yield "score the blocks"
    if merges_first(recipe):
        yield "merge pairs"
    if recipe.settings.search.recovered:
        yield "estimate recovery"
    yield from ("measure the dense model", "search")
    if recipe.settings.prune.merges and not merges_first(recipe):
        yield "merge the chosen pairs"
