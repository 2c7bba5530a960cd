"""A finished run opened again: the plans of its sides, its modules, a replaced model, and other weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core import Drop, KvOnly, PdtrimError, Plan, Removal
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.task_results import Variant
from pdtrim_core.testing.contracts.small_run import TINY, tiny_host


def carried_out(out: Path, **keys: Any) -> LoadedRun:
    host = tiny_host()
    data = {
        "model": {"path": TINY},
        "prune": {"blocks": 2},
        "calibration": {"use": "mini", "samples": 8, "held_out": 4},
        "evaluation": {"threads": 1, "fidelity": False},
        **keys,
    }
    pipeline.run(Recipe.from_data(data, where="run.toml", out=out, host=host), host)
    return load_run(out, tiny_host())


@pytest.fixture
def run(tmp_path: Path) -> LoadedRun:
    return carried_out(tmp_path / "run", scorer="cosine", searcher={"use": "random", "tries": 2}, splitter="dense-prefill")


def test_each_side_has_its_plan(run: LoadedRun) -> None:
    plan = run.outcome.plan.plan
    assert len(plan.decode) == 2
    assert run.plan_of("staged") == plan
    assert run.plan_of("dense") == Plan()
    assert run.plan_of("unified") == run.plan_of("decode") == Plan.unified(plan.decode)
    with pytest.raises(PdtrimError, match="'both' is none of staged, unified, prefill, decode, unrecovered, dense"):
        run.plan_of("both")  # type: ignore[arg-type]


def test_a_run_without_recovery_has_no_pair_before_it(run: LoadedRun) -> None:
    for outcome in (run.outcome, replace(run.outcome, saved_plan=None)):
        with pytest.raises(PdtrimError, match="has no variant 'unrecovered': its recipe names no recovery, so that 'staged' is"):
            replace(run, outcome=outcome).plan_of("unrecovered")


def test_a_prefill_model_that_answers_alone_has_its_tail_and_no_blocks_for_others(run: LoadedRun) -> None:
    count = run.outcome.block_count
    plan = Plan(prefill=Removal([Drop(1), KvOnly(2)]), decode=Removal([Drop(1), Drop(3)])).truncated_prefill(count)
    assert KvOnly(count - 1) in plan.prefill
    saved = SavedPlan(plan, "tiny", run.dense.fingerprint, count)
    changed = replace(run.outcome, saved_plan=json.loads(saved.to_json()))
    assert replace(run, outcome=changed).plan_of("prefill") == Plan.unified(Removal([Drop(1), Drop(2)]))


def test_the_model_is_the_one_that_was_pruned(run: LoadedRun) -> None:
    assert run.dense.fingerprint == run.outcome.environment.weights
    assert run.replaced is None
    assert run.modules == {}


def test_a_model_with_other_weights_is_refused(run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(run.dense), "fingerprint", "f" * 64)
    again = load_run(run.path, tiny_host())
    with pytest.raises(PdtrimError, match=r"has other weights now \(ffffffffffff\): run the recipe again"):
        _ = again.dense


def test_merged_blocks_come_back(tmp_path: Path) -> None:
    run = carried_out(tmp_path / "run", pruner={"use": "streamline"}, distiller={"use": "mse", "tokens": 256})
    (module,) = run.modules.values()
    assert any(not torch.equal(a, b) for a, b in zip(module.parameters(), run.dense.blocks[0].parameters(), strict=True))


@pytest.mark.parametrize("variant", ["unified", "decode", "dense"])
def test_a_replaced_model_comes_back_as_it_was_measured(tmp_path: Path, variant: Variant) -> None:
    run = carried_out(tmp_path / "run", pruner={"use": "slicegpt", "window": 32})
    assert run.replaced is not None
    assert run.plan_of(variant) == Plan()
    assert run.model_of(variant) is (run.dense if variant == "dense" else run.replaced)
    assert run.replaced.sizes.parameters < run.dense.sizes.parameters
    with pytest.raises(PdtrimError, match="this run has no plan: its pruner replaced the whole"):
        run.plan_of("staged")
    (run.path / "replaced" / "rest.safetensors").unlink()
    with pytest.raises(PdtrimError, match="kept no weights of the model that replaced the dense one; run it again"):
        _ = load_run(run.path, tiny_host()).replaced
