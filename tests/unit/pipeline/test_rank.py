"""Scores without a search: those that a run of the recipe would begin with, and nothing on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core.api import hookimpl
from pdtrim_core.errors import RecipeError
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline.prepare import draw, open_model, score
from pdtrim_core.pipeline.rank import Ranking, rank
from pdtrim_core.pipeline.run_inputs import prepare
from pdtrim_core.pipeline.search_removal import search_removal
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.small_run import tiny_host
from tests.unit.pipeline.runs import DATA, Begin

pytestmark = pytest.mark.numeric


def recipe_in(folder: Path, **changes: Any) -> Recipe:
    data = {key: value for key, value in {**DATA, **changes}.items() if value is not None}
    return Recipe.from_data(data, where="x.toml", out=folder / "run", host=tiny_host())


@pytest.mark.parametrize("scorer", ["cosine", "dot", "euclidean", "norm"])
def test_a_ranking_is_what_the_scorer_makes_of_the_recipe_s_model_and_items(tmp_path: Path, scorer: str) -> None:
    recipe = recipe_in(tmp_path, scorer=scorer)
    model = open_model(recipe.model, recipe.host)
    calibration = draw(recipe, recipe.host, model)
    scores = score(recipe, recipe.host, model, calibration)
    assert rank(recipe) == Ranking("tiny:llama", scorer, 6, scores)


def test_a_ranking_has_the_scores_that_a_run_begins_with(begin: Begin, tmp_path: Path) -> None:
    context = begin(prune={"blocks": 2, "merges": False})
    assert rank(recipe_in(tmp_path)).scores == search_removal(context, prepare(context)).scores


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_blocks_are_sorted_from_the_safest_on(tmp_path: Path, family: str) -> None:
    scores = rank(recipe_in(tmp_path, model={"path": f"tiny:{family}"})).scores
    assert sorted(scores.ranking()) == list(range(6))
    assert [scores.block[block] for block in scores.ranking()] == sorted(scores.block, reverse=True)


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("cache", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    rank(recipe_in(tmp_path))
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "cache", tmp_path / "here"]


def test_listeners_hear_the_steps_and_the_end(tmp_path: Path) -> None:
    heard: list[str] = []

    def finished(step: str) -> None:
        heard.append(step)

    listener = SimpleNamespace(
        pdtrim_step_finished=hookimpl(finished), pdtrim_run_ended=hookimpl(lambda: heard.append("the end"))
    )
    recipe = recipe_in(tmp_path)
    recipe.host.register(listener, Origin("ears", "test"))
    rank(recipe)
    assert heard == ["open the model", "calibrate", "score the blocks", "the end"]


def test_a_recipe_with_a_pruner_has_no_scorer_to_rank_by(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, pruner="shortgpt", searcher=None, distiller=None)
    with pytest.raises(RecipeError) as caught:
        rank(recipe)
    assert str(caught.value) == "score: 1 problem\n  pruner 'shortgpt' replaces the scorer: leave it out to see scores"
