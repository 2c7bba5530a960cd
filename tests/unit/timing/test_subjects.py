"""The models of a finished run that are timed: with its merges, in the number format asked for, or the one that replaced it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core import Merge, PdtrimError, Plan
from pdtrim_core.api import Stage
from pdtrim_core.execution.stage_modules import steps_of
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.testing.contracts.small_run import TINY, tiny_host
from pdtrim_core.testing.models import tiny_config
from pdtrim_core.timing.latency import Grid, LatencyBench
from pdtrim_core.timing.shapes import read_shape
from pdtrim_core.timing.subjects import BlocksToRemove, plan_for, subjects_of_run
from tests.unit.recovered_runs import recovered_run

SMALL = Grid(forward=16, prompt_lengths=(8,), batches=(2,), contexts=(8,), repeats=1)


def carried_out(out: Path, **keys: Any) -> LoadedRun:
    host = tiny_host()
    data = {
        "model": {"path": TINY},
        "recovery": "none",
        "prune": {"blocks": 2},
        "calibration": {"use": "mini", "samples": 8, "held_out": 4},
        "evaluation": {"threads": 1, "fidelity": False},
        **keys,
    }
    pipeline.run(Recipe.from_data(data, where="run.toml", out=out, host=host), host)
    return load_run(out, tiny_host())


def timed(run: LoadedRun, dtype: Any = None) -> list[tuple[str, str]]:
    bench = LatencyBench(subjects_of_run(run, dtype).all, SMALL)
    return [(timing.measure, timing.model) for setting in bench.settings for timing in bench.measure(setting)]


ALL = [("forward", "unified"), ("forward", "prefill"), ("prefill", "unified"), ("prefill", "prefill"), ("decode", "decode")]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_run_with_merges_is_timed_with_them(tmp_path: Path, dtype: Any) -> None:
    run = carried_out(tmp_path / "run", pruner={"use": "streamline"}, distiller={"use": "mse", "tokens": 256})
    assert timed(run, dtype) == ALL
    subjects = subjects_of_run(run, dtype)
    (module,) = subjects.all[3].replacements.values()
    assert isinstance(next(iter(run.outcome.plan.plan.decode)), Merge)
    kinds = {parameter.dtype for part in (module, run.dense.model) for parameter in part.parameters()}
    assert kinds == {getattr(torch, dtype or "float32")}
    assert run.dense.sizes.bytes_per_number == (2 if dtype else 4)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_recovered_run_is_timed_with_its_recovered_layers(tmp_path: Path, dtype: Any) -> None:
    run = recovered_run(tmp_path / "run")
    subjects = subjects_of_run(run, dtype)
    wanted = getattr(torch, dtype or "float32")
    for subject in subjects.all[1:]:
        stages: tuple[Stage, ...] = ("prefill", "decode") if subject.name == "unified" else (subject.stage,)
        for stage in stages:
            steps = steps_of(run.dense, subject.plan, stage, subject.replacements)
            with_other_weights = [step for step in steps if step.module is not run.dense.blocks[step.layer.block]]
            assert with_other_weights, (subject.name, stage)
            assert {weight.dtype for step in steps for weight in step.module.parameters()} == {wanted}
    assert timed(run, dtype) == ALL


def test_a_recovered_plan_lends_its_drops_to_random_weights(tmp_path: Path) -> None:
    run = recovered_run(tmp_path / "run", splitter="dense-prefill", exporter=["plan"])
    saved = run.outcome.plan
    assert saved.recovered
    shape = read_shape(run_shape(tmp_path), tiny_host(), torch.float32)
    # Time does not depend on the values of weights.
    assert plan_for(shape, BlocksToRemove(plan=run.path / "plan.json")) == (saved.plan, "decode")


def run_shape(tmp_path: Path) -> str:
    """The config of the tiny model, as a shape to fill with random weights."""
    tiny_config("llama").save_pretrained(tmp_path / "shape")
    return str(tmp_path / "shape")


def test_a_run_that_shrinks_blocks_is_timed(tmp_path: Path) -> None:
    run = carried_out(tmp_path / "run", pruner={"use": "flap"}, splitter="unified")
    assert timed(run, "bfloat16") == ALL


def test_a_model_that_replaced_the_dense_one_is_timed_as_the_unified_one(tmp_path: Path) -> None:
    run = carried_out(tmp_path / "run", pruner={"use": "slicegpt", "window": 32})
    assert timed(run) == [("forward", "unified"), ("prefill", "unified"), ("decode", "unified")]
    subjects = subjects_of_run(run)
    assert subjects.plan is None
    assert subjects.all[1].model is run.replaced
    assert subjects.all[1].plan == Plan()
    dense, unified = LatencyBench(subjects.all, SMALL).footprints()
    assert unified.weights < dense.weights
    assert set(unified.beside) == {"prefill", "decode"}


def test_a_run_without_whole_blocks_to_remove_lends_no_counts(tmp_path: Path) -> None:
    outcome: Outcome = carried_out(tmp_path / "run", pruner={"use": "flap"}, splitter="unified").outcome
    shape = read_shape("smollm2-135m", tiny_host(), torch.float32)
    with pytest.raises(PdtrimError, match=r"the run removes no whole blocks, .*: give --blocks N"):
        plan_for(shape, BlocksToRemove(like=outcome))
