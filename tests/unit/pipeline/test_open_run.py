"""A finished run opened again: the plans of its sides, its modules, a replaced model, and other weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core import Drop, KvOnly, PdtrimError, Plan, Removal
from pdtrim_core.api import Stage
from pdtrim_core.execution.recovered_weights import STAGES
from pdtrim_core.execution.stage_modules import steps_of
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.task_results import Variant
from pdtrim_core.testing.contracts.small_run import TINY, tiny_host
from tests.unit.recovered_runs import recovered_run


def carried_out(out: Path, **keys: Any) -> LoadedRun:
    host = tiny_host()
    data = {
        "model": {"path": TINY},
        "prune": {"blocks": 2},
        "recovery": "none",
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
    with pytest.raises(
        PdtrimError, match="'both' is none of staged, unified, prefill, decode, unrecovered, unquantized, unselected, dense"
    ):
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


# Recovered runs


def layers_of(run: LoadedRun, variant: Variant, stage: Stage) -> dict[int, torch.Tensor]:
    """What a variant has in the MLP of each block, where that is not the dense one."""
    steps = steps_of(run.dense, run.plan_of(variant), stage, run.modules_of(variant))
    name = "mlp.down_proj.weight"
    found = {step.layer.block: step.module.get_parameter(name) for step in steps if step.layer.runs}
    return {block: weight for block, weight in found.items() if weight is not run.dense.blocks[block].get_parameter(name)}


def test_each_variant_of_a_recovered_run_has_the_layers_of_its_stages(tmp_path: Path) -> None:
    # Both stages lose the same blocks; each is folded on tokens of its own, and of prefill's last block only K/V are made.
    middle, fold = {"use": "beam", "protect_last": 2}, {"use": "fold", "tokens": 600}
    run = recovered_run(tmp_path / "run", splitter="unified", searcher=middle, recovery=[fold])
    plan = run.outcome.plan.plan
    assert plan != Plan.unified(plan.decode) == run.plan_of("prefill")
    prefill, decode = (layers_of(run, "staged", stage) for stage in STAGES)
    assert prefill.keys() & decode.keys()
    assert any(not torch.equal(prefill[block], decode[block]) for block in prefill.keys() & decode.keys())
    for stage in STAGES:
        assert same(layers_of(run, "unified", stage), decode)
        assert same(layers_of(run, "decode", stage), decode)
        assert same(layers_of(run, "prefill", stage), prefill)
        assert layers_of(run, "unrecovered", stage) == layers_of(run, "dense", stage) == {}
    assert run.same_as("unified") == ("unified", "decode")
    assert run.same_as("prefill") == ("prefill",)
    assert run.same_as("unrecovered") == ("unrecovered",)


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[block] is other[block] for block in one)


def test_a_recovered_run_without_its_weights_is_refused(tmp_path: Path) -> None:
    run = recovered_run(tmp_path / "run")
    assert run.modules
    for stage in STAGES:
        (run.path / "recovered" / f"{stage}.safetensors").unlink()
    with pytest.raises(PdtrimError, match="the plan has recovered weights, and they are not in"):
        _ = load_run(run.path, tiny_host()).modules
