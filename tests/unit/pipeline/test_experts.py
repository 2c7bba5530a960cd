"""Whole runs of recipes whose decode loses experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Plan, PluginHost, Removal, Shrink
from pdtrim_core.errors import PdtrimError
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.budget import budget_of
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.exporters.card import _removed
from pdtrim_plugins.reports.html.diagram import diagram_in_words
from pdtrim_plugins.reports.html.sentences import _losses
from pdtrim_plugins.reports.table import _headline


def recipe_of(host: PluginHost, folder: Path, *, family: str = "mixtral", **more: Any) -> Recipe:
    data: dict[str, Any] = {
        "model": {"path": str(save_tiny_model(folder / "model", family))},
        "prune": {"fraction": 0.2},
        "pruner": "reap",
        "calibration": {"use": "mini", "samples": 8, "held_out": 4},
        "objective": "margin",
        "evaluation": {"threads": 1, "fidelity": False},
        "recovery": "none",
        **more,
    }
    return Recipe.from_data(data, where="experts.toml", out=folder / "run", host=host)


def outcome_of(recipe: Recipe) -> Outcome:
    return pipeline.run(recipe, recipe.host)


def test_experts_are_pruned_split_measured_and_exported(host: PluginHost, tmp_path: Path) -> None:
    recipe = recipe_of(
        host,
        tmp_path,
        splitter={"use": "gain", "threshold": 0},
        exporter=["checkpoints", "plan"],
        evaluation={"threads": 1, "fidelity": True},
    )
    outcome = outcome_of(recipe)
    plan = outcome.plan.plan
    assert [str(element) for element in plan.decode] == [f"{block}.experts-1" for block in range(6)]
    scores = {row.name: row.calibration.score for row in outcome.rows}
    assert scores["staged"] >= scores["unified"]
    saved = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert saved["format"] == 6
    config = json.loads((tmp_path / "run" / "decode" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["num_local_experts"]) == ("mixtral", 3)
    assert "decode loses experts of 6 of 6 blocks" in _headline(outcome)
    assert "fewer experts" in (tmp_path / "run" / "decode" / "README.md").read_text(encoding="utf-8")
    # A run that has ended goes on as it is.
    assert outcome_of(recipe).plan == outcome.plan


def test_a_prefill_keeps_all_experts_beside_a_recovery(host: PluginHost, tmp_path: Path) -> None:
    recovery = {"use": "distill", "tokens": 200}
    data = {"sources": ["calibration"], "prompt_tokens": 16, "answer_tokens": 16}
    recipe = recipe_of(
        host,
        tmp_path,
        pruner="frequency",
        splitter="dense-prefill",
        recovery=recovery,
        recovery_data=data,
        exporter=["checkpoints"],
    )
    plan = outcome_of(recipe).plan.plan
    # Prefill ends with the K/V of the last block, and loses nothing else.
    assert [str(element) for element in plan.prefill] == ["kv:5"]
    assert [str(element) for element in plan.decode] == [f"{block}.experts-1" for block in range(6)]


def test_a_budget_of_experts_is_told_in_parameters(host: PluginHost, tmp_path: Path) -> None:
    assert str(budget_of(recipe_of(host, tmp_path), host)).startswith("20.00 % of the parameters of ")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"family": "llama"}, "has experts among which a router chooses"),
        ({"prune": {"fraction": 0.7}}, "parameters can go in experts, as each router needs those that it sends a token to"),
        ({"prune": {"fraction": 0.01}}, 'prune more, or say width = "per-block", whose steps are smaller'),
    ],
    ids=str,
)
def test_what_cannot_go_is_refused_before_anything_is_measured(
    host: PluginHost, tmp_path: Path, more: dict[str, Any], problem: str
) -> None:
    recipe = recipe_of(host, tmp_path, **more)
    for refusing in (lambda: budget_of(recipe, host), lambda: outcome_of(recipe)):
        with pytest.raises(PdtrimError, match=problem):
            refusing()


def test_the_page_and_the_card_tell_of_experts() -> None:
    decode = Removal([Shrink(1, "experts", (0, 3)), Shrink(1, "attention", (0,)), Shrink(2, "experts", (1,))])
    assert diagram_in_words(Plan(Removal([]), decode), 4) == (
        "Prefill, by block. runs: 0 to 3. Decode, by block. runs: 0 and 3; runs with fewer heads or experts: 1 and 2."
    )
    assert _losses(decode, 4) == ("runs 1 of 4 blocks with fewer heads and runs 2 of 4 blocks with fewer experts")
    assert _removed(decode) == "fewer K/V heads: 1 in block 1; fewer experts: 2 in block 1, 1 in block 2"
