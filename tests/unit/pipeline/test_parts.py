"""Whole runs of recipes whose decode may lose the attention or the MLP of a block alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Drop, DropPart, Plan, PluginHost, Removal
from pdtrim_core.errors import PdtrimError
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.budget import budget_of
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.exporters.card import _removed
from pdtrim_plugins.reports.html.diagram import block_diagram, diagram_in_words
from pdtrim_plugins.reports.html.sentences import _losses

RECOVERIES: dict[str, Any] = {
    "recovery": ["fold", "kv-refit", "exact-first-token"],
    "recovery_data": {"sources": ["calibration"], "prompt_tokens": 16, "answer_tokens": 16},
}


def recipe_of(host: PluginHost, folder: Path, *, family: str = "llama", **more: Any) -> Recipe:
    data: dict[str, Any] = {
        "model": {"path": str(save_tiny_model(folder / "model", family))},
        "prune": {"blocks": 2, "parts": True},
        "calibration": {"use": "mini", "samples": 8, "held_out": 4},
        "searcher": "sequential",
        "objective": "margin",
        "evaluation": {"threads": 1, "fidelity": False},
        "recovery": "none",
        **more,
    }
    if "pruner" in more:
        del data["searcher"], data["prune"]["parts"]
    return Recipe.from_data(data, where="parts.toml", out=folder / "run", host=host)


def outcome_of(recipe: Recipe) -> Outcome:
    return pipeline.run(recipe, recipe.host)


def test_a_search_over_parts_ends_in_a_plan_of_the_bytes_asked_for(host: PluginHost, tmp_path: Path) -> None:
    recipe = recipe_of(host, tmp_path, splitter="kv-tail", exporter=["checkpoints", "plan"])
    outcome = outcome_of(recipe)
    decode = outcome.plan.plan.decode
    assert decode.dropped_parts
    assert all(str(element) for element in decode)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["format"] == 5
    assert (tmp_path / "run" / "decode" / "config.json").is_file()
    # A run that has ended goes on as it is.
    assert outcome_of(recipe).plan == outcome.plan


def test_a_pruner_of_parts_is_split_recovered_and_selected(host: PluginHost, tmp_path: Path) -> None:
    pruner = {"use": "llm-drop", "drop": "both"}
    outcome = outcome_of(recipe_of(host, tmp_path, pruner=pruner, splitter="budget", kv_selector="first-only", **RECOVERIES))
    plan = outcome.plan.plan
    assert plan.decode.dropped_parts
    slots = {slot.block for slot in plan.slots(6)}
    assert {selection.block for selection in plan.selections} <= slots
    assert any("only whole blocks are made up for" in note for note in outcome.notes)


def test_a_budget_of_parts_is_told_in_bytes(host: PluginHost, tmp_path: Path) -> None:
    text = str(budget_of(recipe_of(host, tmp_path), host))
    assert text.startswith("parts of the 6 blocks go, with as many bytes as 2 blocks have, ")


def test_a_family_that_cannot_is_refused_before_anything_is_measured(host: PluginHost, tmp_path: Path) -> None:
    recipe = recipe_of(host, tmp_path, family="opt")
    told = "its blocks cannot run without their mlp: it is no module of its own in a block"
    for refusing in (lambda: budget_of(recipe, host), lambda: outcome_of(recipe)):
        with pytest.raises(PdtrimError, match=told):
            refusing()


def test_the_page_and_the_card_tell_of_parts() -> None:
    decode = Removal([DropPart(1, "attention"), DropPart(2, "mlp"), Drop(3)])
    plan = Plan(Removal([DropPart(2, "mlp")]), decode)
    assert diagram_in_words(plan, 5) == (
        "Prefill, by block. runs: 0, 1, 3 and 4; attention alone (upper half): 2. "
        "Decode, by block. runs: 0 and 4; attention alone (upper half): 2; MLP alone (lower half): 1; gone: 3."
    )
    assert "attention alone (upper half)" in str(block_diagram("parts", plan, 5))
    assert _losses(decode, 5) == (
        "runs without 1 block of 5 (3), runs without the attention of 1 block of 5 (1) and runs without the MLP of 1 block of 5 "
        "(2)"
    )
    assert _removed(decode) == "removed: 3; without attention: 1; without MLP: 2"
