"""The benchmark of fidelity: both ways find the same KL, whatever the rows a batch."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from pdtrim_core.api import Drop, Plan, Removal
from pdtrim_core.testing import tiny_llama

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("fidelity_speed", "plain_way", "subject"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("fidelity_speed")


@pytest.mark.numeric
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_plain_loop_and_ours_find_the_same_divergence(rows: int, speed: ModuleType) -> None:
    model, rng = tiny_llama(), Random(0)
    prompts, continuations = ([[rng.randrange(256) for _ in range(rng.randint(1, 20))] for _ in range(7)] for _ in range(2))
    items = speed.items_of(prompts, continuations)
    removed = [[1, 3], [0, 4]]
    plans = [Plan.unified(Removal([Drop(block) for block in blocks])) for blocks in removed]
    for blocks, own in zip(removed, speed.ours(model, plans, items), strict=True):
        assert own > 0.01
        assert speed.plain(model.model, speed.without_blocks(model, blocks), items, rows) == pytest.approx(own, abs=1e-4)
