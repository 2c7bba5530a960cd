"""The order in which the runs of a sweep are carried out, and which of them are done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pdtrim_core import PluginHost
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.sweeping.points import Point
from pdtrim_core.sweeping.running import finished, neighbours
from pdtrim_core.sweeping.sweep import PlannedRun
from pdtrim_core.testing.contracts.small_run import small_run

BASE: dict[str, Any] = {"model": {"path": "package:none"}, "recovery": "none", "prune": {"blocks": 1}}


def planned(host: PluginHost, name: str, **changes: Any) -> PlannedRun:
    return PlannedRun(Point(name, "", {}), Recipe.from_data({**BASE, **changes}, where="x", out=Path(name), host=host))


def ordered(*runs: PlannedRun) -> list[str]:
    return [run.point.name for run in neighbours(runs)]


def test_runs_of_one_model_stand_together_and_then_those_of_one_calibration(host: PluginHost) -> None:
    runs = [
        planned(host, f"{model} {seed} {scorer}", model={"path": f"package:{model}"}, seed=seed, scorer=scorer)
        for scorer in ("cosine", "dot")
        for seed in (0, 1)
        for model in ("one", "two")
    ]
    assert ordered(*runs) == [f"{m} {s} {c}" for m in ("one", "two") for s in (0, 1) for c in ("cosine", "dot")]


def test_runs_that_share_all_keep_their_order(host: PluginHost) -> None:
    runs = [planned(host, str(t0), searcher={"t0": t0}) for t0 in (9, 3, 7)]
    assert ordered(*runs) == ["9", "3", "7"]


def test_a_run_is_done_when_its_folder_has_the_outcome_of_its_recipe(host: PluginHost, tmp_path: Path) -> None:
    recipe = Recipe.from_data(BASE, where="x", out=tmp_path, host=host)
    assert finished(recipe) is None
    outcome = small_run()[0]
    (tmp_path / "outcome.json").write_text(outcome.to_json())
    assert finished(recipe) is None
    elsewhere = {**recipe.to_data(), "out": "elsewhere", "report": []}
    (tmp_path / "outcome.json").write_text(replace(outcome, recipe=elsewhere).to_json())
    assert finished(recipe) is not None
    (tmp_path / "outcome.json").write_text("{")
    assert finished(recipe) is None
