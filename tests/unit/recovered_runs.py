"""Runs that recover a pair of a tiny model, in about a second: K/V-only blocks of prefill are fitted, and decode is folded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.small_run import tiny_host

EVALUATION = {"threads": 1, "fidelity": False}
RECIPE: dict[str, Any] = {
    "prune": {"blocks": 2, "merges": False},
    "calibration": {"samples": 6, "held_out": 3},
    "searcher": "greedy",
    "splitter": {"use": "kv-tail", "prefill_at_most": 0.5},
    "objective": "kl",
    "recovery": [{"use": "kv-refit", "tokens": 2400}, {"use": "fold", "tokens": 600}],
    "recovery_data": {"prompt_tokens": 8, "answer_tokens": 8},
    "evaluation": EVALUATION,
}
UNIFIED: dict[str, Any] = {"splitter": "unified", "evaluation": {**EVALUATION, "first_token": "prefill"}}
"""What makes both stages one model: prefill makes the first token, so that nothing of it is left out."""


def recovered_run(out: Path, model: str = "tiny:llama", **changes: Any) -> LoadedRun:
    """Carry such a run out, with changes of the recipe (None leaves a key out), and open it again."""
    host = tiny_host()
    data = {key: value for key, value in {"model": {"path": model}, **RECIPE, **changes}.items() if value is not None}
    pipeline.run(Recipe.from_data(data, where="x.toml", out=out, host=host), host)
    return load_run(out, tiny_host())
