"""A finished run of a tiny model whose tokenizer the harness can use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pdtrim_core import Drop, LoadedRun, Plan, Removal, SavedPlan, load_run
from pdtrim_core.host.host import load_plugins
from pdtrim_core.pipeline import pipeline
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.models import save_tiny_model


def carried_out(checkpoint: Path, out: Path, **keys: object) -> LoadedRun:
    host = load_plugins()
    data = {
        "model": {"path": str(checkpoint), "placement": "cpu"},
        "recovery": "none",
        "prune": {"blocks": 2},
        "calibration": {"use": "mini", "samples": 8, "held_out": 4},
        "evaluation": {"threads": 1, "fidelity": False},
        **keys,
    }
    pipeline.run(Recipe.from_data(data, where="run.toml", out=out, host=host), host)
    return load_run(out, host)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def staged_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A run whose stages differ: decode loses two early blocks, so that its K/V are not prefill's; prefill loses its tail."""
    out = tmp_path_factory.mktemp("runs") / "staged"
    run = carried_out(checkpoint, out, scorer="cosine", searcher={"use": "random", "tries": 1}, splitter="dense-prefill")
    outcome, lost = run.outcome, Removal([Drop(1), Drop(3)])
    plan = Plan(prefill=Removal(), decode=lost).truncated_prefill(outcome.block_count)
    saved = SavedPlan(plan, outcome.model, run.dense.fingerprint, outcome.block_count)
    (out / "outcome.json").write_text(replace(outcome, saved_plan=saved.to_data()).to_json())
    return load_run(out)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
