"""The items that ship measure something: a real model knows more than chance does."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.data.items import calibrate
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.plan.plan import Plan
from pdtrim_plugins.calibrations import Mini
from pdtrim_plugins.objectives import Accuracy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pdtrim_core.api import BlockModel, Sample

HALVES = {"physics": 1 / 2, "knowledge": 1 / 4}
"""The halves of `mini`, with the share that chance gets right."""


@pytest.mark.model
def test_the_real_model_is_better_than_chance_on_both_halves_of_mini(smollm: BlockModel) -> None:
    shares, chances = [], {}
    for file, samples in (("calibration", Mini().draw(256, Random(0))), ("evaluation", Mini().draw_held_out(64, Random(0)))):
        right = _right(smollm, samples)
        for half, chance in HALVES.items():
            of_half = [value for name, value in right.items() if name.startswith(half)]
            hits = round(sum(of_half))
            shares.append(f"{file} {half}: {hits} of {len(of_half)} right, {100 * hits / len(of_half):.1f} %")
            chances[file, half] = _by_chance(hits, len(of_half), chance)
    figures = "\n".join(shares)
    print(figures)
    assert all(chances["calibration", half] < 0.01 for half in HALVES), figures


def _right(model: BlockModel, samples: Iterable[Sample]) -> dict[str, float]:
    """Return for each item by name whether the dense model has it right."""
    items = calibrate(list(samples), [], model.tokenizer).items
    values = Accuracy().item_values(StagedModel(PrefixCache(model, ExecutionOptions(packed=True)), Plan()), items)
    return {item.name: value for item, value in zip(items, values, strict=True)}


def _by_chance(hits: int, count: int, chance: float) -> float:
    """Return the probability of so many hits or more by chance: the one-sided binomial test."""
    return math.fsum(math.comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(hits, count + 1))
