"""Keys that were called otherwise in 0.1: each alone is read as what it is now, and beside that it is one too many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.errors import RecipeError
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.old_formats import NOW_CALLED
from pdtrim_core.sweeping.sweep import read_sweep

RECIPE: dict[str, Any] = {"model": {"path": "package:none"}, "prune": {"blocks": 1}}
BOTH: dict[str, dict[str, Any]] = {
    "prune.merge_above": {"prune": {"blocks": 1, "merge_above": 0.9, "merge_threshold": 0.9}},
    "evaluation.prefill_tail": {"evaluation": {"prefill_tail": "free", "truncate_prefill": True}},
    "model.device": {"model": {"path": "package:none", "device": "cpu", "placement": "cpu"}},
    "searcher.caution": {"searcher": {"use": "greedy", "caution": 1.0}, "search": {"caution": 1.0}},
}
SWEEP = """
sweep = 1
recipe = {model = "package:none", prune = {blocks = 1}}
[[runs]]
name = "a"
VARIANTS
[evaluate]
tasks = ["piqa"]
MORE
"""
OLD_AND_NEW = 'sides = ["staged"]\nvariants = ["staged"]'


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("key", BOTH)
def test_an_old_key_beside_its_new_one_is_told_with_what_to_do(key: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_data({**RECIPE, **BOTH[key]}, out=tmp_path)
    assert list(caught.value.problems) == [f"{key}: this is {NOW_CALLED[key]} since 0.2, which is given as well: leave {key} out"]


@pytest.mark.parametrize(
    ("runs", "evaluate", "told"),
    [(OLD_AND_NEW, "", "runs.0.sides"), ("", OLD_AND_NEW, "evaluate.sides")],
    ids=["runs", "evaluate"],
)
def test_the_same_holds_for_sweeps(runs: str, evaluate: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(SWEEP.replace("VARIANTS", runs).replace("MORE", evaluate))
    with pytest.raises(RecipeError) as caught:
        read_sweep(file)
    now = NOW_CALLED[told.replace(".0", "")]
    assert f"{told}: this is {now} since 0.2, which is given as well: leave {told} out" in caught.value.problems


def test_every_renamed_key_is_tried() -> None:
    assert set(NOW_CALLED) == {*BOTH, "runs.sides", "evaluate.sides"}
