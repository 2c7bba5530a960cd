"""What a splitter is told of a model, and the model itself where it asks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from pdtrim_core import Recipe, run
from pdtrim_core.api import CostModel, Drop, PdtrimError, Plan, Removal, Requests, StageSplitter, hookimpl, measure
from pdtrim_core.host.host import Origin
from pdtrim_core.testing import SplitterContract
from pdtrim_core.testing.contracts.small_run import tiny_host

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random


class Stopwatch(StageSplitter):
    """Keeps in prefill whatever a forward of the dense model takes no time for."""

    name = "stopwatch"
    needs_model: ClassVar[bool] = True
    seconds: ClassVar[list[float]] = []

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        del rng
        assert costs.model is not None
        assert costs.model.block_count == costs.block_count
        started = time.perf_counter()
        costs.model.model(torch.zeros((1, 4), dtype=torch.long, device=costs.model.device))
        self.seconds.append(time.perf_counter() - started)
        yield from measure(plan)
        return plan


class TestStopwatch(SplitterContract):
    component = Stopwatch


class Blind(StageSplitter):
    """Asks for no model."""

    name = "blind"
    told: ClassVar[list[CostModel]] = []

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        del rng
        self.told.append(costs)
        yield from ()
        return plan


class Parts:
    @hookimpl
    def pdtrim_splitters(self) -> list[type[StageSplitter]]:
        return [Stopwatch, Blind]


@pytest.mark.parametrize("pruner", [None, "shortgpt"])
def test_a_splitter_that_asks_gets_the_dense_model_in_a_run(tmp_path: Path, pruner: str | None) -> None:
    host = tiny_host()
    host.register(Parts(), Origin("parts", "parts"))
    finder = {"searcher": "greedy"} if pruner is None else {"pruner": pruner}
    data = {
        "model": "tiny:llama",
        "recovery": "none",
        "prune": {"blocks": 2},
        "calibration": {"samples": 4, "held_out": 2},
        "objective": "margin",
    }
    data["evaluation"] = {"fidelity": False}
    for splitter in ("stopwatch", "blind"):
        recipe = Recipe.from_data({**data, **finder, "splitter": splitter}, out=tmp_path / splitter, host=host)
        run(recipe, host)
    assert Stopwatch.seconds
    assert Stopwatch.seconds[-1] > 0
    assert Blind.told[-1].model is None
    assert Blind.told[-1].cost(Plan.unified(Removal([Drop(1)])), "decode") < 1


def test_a_cost_model_without_sizes_says_so() -> None:
    with pytest.raises(PdtrimError) as caught:
        CostModel(4).cost(Plan(), "prefill")
    assert str(caught.value) == "this cost model was made without the model's sizes, so costs are unknown"
