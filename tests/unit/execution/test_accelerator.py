"""The same numbers on an accelerator as on the CPU; the code never names a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pdtrim_core import Drop, KvOnly, Plan, Removal, load_plugins
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing import FAMILIES, tiny_model
from pdtrim_core.testing.models import save_tiny_model
from tests.unit.execution.test_staged_model import some_items

pytestmark = pytest.mark.gpu
PLANS = [Plan(), Plan(decode=Removal([Drop(2)])), Plan(Removal([KvOnly(4)]), Removal([Drop(1)])).truncated_prefill(6)]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_on_an_accelerator_are_those_on_the_cpu(family: str) -> None:
    accelerator = torch.accelerator.current_accelerator()
    model = tiny_model(family)
    on_cpu = [
        StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64)), plan).loglikelihoods(some_items()) for plan in PLANS
    ]
    model.model.to(accelerator)
    there = [
        StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64)), plan).loglikelihoods(some_items()) for plan in PLANS
    ]
    for one, other in zip(on_cpu, there, strict=True):
        for sums, same in zip(one, other, strict=True):
            # Other kernels add in another order.
            assert sums == pytest.approx(same, abs=1e-3)


def test_a_whole_run_on_an_accelerator(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    data = {
        "model": {"path": str(folder)},
        "recovery": "none",
        "prune": {"blocks": 2},
        "calibration": {"samples": 8, "held_out": 4},
    }
    host = load_plugins()
    outcome = run(Recipe.from_data(data, where="gpu", out=tmp_path / "run", host=host), host)
    assert outcome.environment.device.startswith(str(torch.accelerator.current_accelerator()))
    assert outcome.plan.plan.decode.blocks_removed == 2
