"""Block scores without a search: what a scorer makes of a recipe's model and items."""

from __future__ import annotations

from dataclasses import dataclass

from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import RecipeError
from pdtrim_core.execution.threads import threads
from pdtrim_core.pipeline.events import RunEvents
from pdtrim_core.pipeline.prepare import draw, open_model, score
from pdtrim_core.recipe.missing import check_there
from pdtrim_core.recipe.recipe import Recipe


@dataclass(frozen=True)
class Ranking:
    """The scores of a model's blocks, over so many items."""

    model: str
    scorer: str
    items: int
    scores: Scores


def rank(recipe: Recipe) -> Ranking:
    """Open a recipe's model, draw its items and score its blocks; nothing is measured, and nothing is written.

    Raises `RecipeError` for a recipe with a pruner, which has no scorer.
    """
    if recipe.pruner is not None:
        raise RecipeError("score", [f"pruner '{recipe.pruner.name}' replaces the scorer: leave it out to see scores"])
    check_there(recipe)
    host = recipe.host
    with threads(recipe.settings.evaluation.threads), RunEvents(host) as log:
        with log.step("open the model"):
            model = open_model(recipe.model, host)
        with log.step("calibrate"):
            calibration = draw(recipe, host, model)
        with log.step("score the blocks"):
            scores = score(recipe, host, model, calibration)
    return Ranking(model.name, recipe.scorer.name, len(calibration.items), scores)
