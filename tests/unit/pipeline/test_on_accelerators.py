"""Whole runs with the model on one pretended accelerator and on two, which refuse to meet tensors of any other device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.model_sources import FolderModel
from tests.pretend_accelerator import PretendAccelerator

if TYPE_CHECKING:
    from pdtrim_core import PluginHost
    from pdtrim_core.api import LoadedModel, Outcome

PRUNERS: dict[str, Any] = {
    **dict.fromkeys(("shortgpt", "sleb", "llm-pruner", "torch-pruning", "flap")),
    **dict.fromkeys(("streamline", "laco", "slicegpt", "llm-drop")),
    "fisher": {"texts": 4, "answers": 4},
    "shortened-ppl": {"plus": False},
    "shortened-taylor": {"plus": False},
}
SEARCHERS = ("annealing", "greedy", "random", "sequential", "beam", "exhaustive", "restarts", "joint")
GREEDY = {"searcher": "greedy", "recovery": "none"}
OTHERS: dict[str, dict[str, Any]] = {
    "counted padding": {"pruner": {"use": "shortgpt", "padding": "counted"}, "recovery": "none"},
    "folds of papers": {"pruner": {"use": "laco", "merge": "laco-paper"}, "recovery": "none"},
    "merges": {**GREEDY, "prune": {"blocks": 2, "merge_threshold": -1.0}},
    "closed forms": {"searcher": "greedy"},
    "estimated recovery": {"searcher": "greedy", "search": {"recovered": True}},
    "training": {"searcher": "greedy", "recovery": [{"use": "distill", "tokens": 512}]},
    "formats": {**GREEDY, "formats": {"group_size": 16, "decode": "W4A16", "prefill": "W8A8"}},
    "parts": {"searcher": "sequential", "recovery": "none", "prune": {"blocks": 2, "parts": True}},
    "selected K/V": {**GREEDY, "kv_selector": "paper", "evaluation": {"fidelity": True}},
    "accuracy": {**GREEDY, "objective": "accuracy"},
    "checkpoints": {"searcher": "greedy", "exporter": ["plan", "checkpoints"]},
    "vllm": {**GREEDY, "exporter": ["vllm"]},
    "gguf": {**GREEDY, "splitter": "unified", "exporter": [{"use": "gguf", "pre": "llama-bpe"}]},
    "draft": {**GREEDY, "exporter": ["draft"]},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.slow), 2])
def accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PretendAccelerator:
    """So many devices; models of folders are opened on them."""
    there, opened = PretendAccelerator(request.param), FolderModel.open

    def on_devices(source: FolderModel) -> LoadedModel:
        loaded = opened(source)
        return replace(loaded, model=there.put(loaded.model, "model.layers"))

    monkeypatch.setattr(FolderModel, "open", on_devices)
    return there


def outcome_of(data: dict[str, Any], checkpoint: Path, out: Path, host: PluginHost) -> Outcome:
    """What a recipe gives."""
    base = {
        "model": {"path": str(checkpoint), "placement": "cpu"},
        "prune": {"blocks": 2},
        "calibration": {"samples": 4, "held_out": 2},
        # Comparing with the dense model writes answers token by token, which takes most of a run here.
        "evaluation": {"fidelity": False},
    }
    return run(Recipe.from_data({**base, **data}, where="there", out=out, host=host), host)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner(pruner: str, accelerator: PretendAccelerator, checkpoint: Path, tmp_path: Path, host: PluginHost) -> None:
    data = {"pruner": {"use": pruner, **(PRUNERS[pruner] or {})}, "recovery": "none"}
    with accelerator:
        outcome = outcome_of(data, checkpoint, tmp_path / "run", host)
    assert outcome.environment.device == "lazy:0"
    assert (outcome.saved_plan is None) == (pruner == "slicegpt")


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_every_searcher(
    searcher: str, accelerator: PretendAccelerator, checkpoint: Path, tmp_path: Path, host: PluginHost
) -> None:
    with accelerator:
        outcome = outcome_of({"searcher": searcher, "recovery": "none"}, checkpoint, tmp_path / "run", host)
    assert outcome.plan.plan.decode.blocks_removed == 2


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_a_run_may_do(
    name: str, accelerator: PretendAccelerator, checkpoint: Path, tmp_path: Path, host: PluginHost
) -> None:
    with accelerator:
        outcome = outcome_of(OTHERS[name], checkpoint, tmp_path / "run", host)
    assert outcome.environment.device == "lazy:0"


def test_the_outcome_is_that_of_the_processor(
    accelerator: PretendAccelerator, checkpoint: Path, tmp_path: Path, host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"searcher": "greedy", "objective": "kl", "evaluation": {"fidelity": True}}
    with accelerator:
        there = outcome_of(data, checkpoint, tmp_path / "there", host)
    monkeypatch.undo()
    here = outcome_of(data, checkpoint, tmp_path / "here", host)
    assert there.plan.plan == here.plan.plan
    assert [row.calibration.score for row in there.rows] == pytest.approx([row.calibration.score for row in here.rows], abs=1e-3)
    assert torch.accelerator.is_available() or here.environment.device == "cpu"
