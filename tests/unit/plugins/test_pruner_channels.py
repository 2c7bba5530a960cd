"""What is said of a budget before there are importances is what is found with them."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from pdtrim_core.api import PdtrimError, PruneFacts
from pdtrim_core.testing import tiny_llama
from pdtrim_plugins.pruners import channels as ch
from pdtrim_plugins.pruners.llm_pruner import LlmPruner

SIZES = tiny_llama().sizes


def told_by(facts: PruneFacts, options: LlmPruner, seed: int) -> list[str]:
    """Return what a pruning with random importances says, as a list."""
    rng = Random(seed)
    try:
        rated = [
            ch.Rated(block, part, tuple(rng.random() for _ in range(count)), parameters)
            for block, part in ch.places(facts, options)
            for count, parameters in [facts.sizes.blocks[block].units[part]]
        ]
        ch.lowest(rated, facts.parameters, options)
    except PdtrimError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize(
    ("options", "always"),
    [
        ({}, False),
        ({"parts": "attention"}, False),
        ({"parts": "mlp", "first_block": 1, "last_block": 3}, False),
        ({"width": "per-block"}, False),
        ({"width": "per-block", "scope": "global"}, False),
        ({"width": "per-block", "parts": "attention", "scope": "global"}, False),
        ({"scope": "global"}, True),
        ({"first_block": 4, "last_block": 6}, True),
    ],
)
def test_a_budget_is_beyond_the_units_before_they_are_rated_and_after(options: dict[str, Any], always: bool) -> None:
    pruner = LlmPruner(**options)
    found = set()
    for parameters in (0, 1, 47, 48, 300, 700, 800, 5_000, 9_216, 9_217, 20_000, 36_288, 36_289, 60_000):
        facts = PruneFacts("tiny", "llama", SIZES, 1, parameters)
        problems = pruner.problems(facts)
        assert all(told_by(facts, pruner, seed) == problems for seed in range(3))
        found.add(bool(problems))
    assert found == ({True} if always else {True, False})


def test_where_blocks_differ_in_size_only_what_no_ranking_changes_is_said() -> None:
    wide = replace(SIZES.blocks[0], units={"attention": (4, 2000), "mlp": (48, 120)})
    sizes = replace(SIZES, blocks=(wide, *SIZES.blocks[1:]))
    said = {
        (width, parameters): LlmPruner(width=width).problems(PruneFacts("tiny", "llama", sizes, 1, parameters))
        for width in ("uniform", "per-block")
        for parameters in (1, 10**6)
    }
    (unlike,) = said["uniform", 1]
    assert unlike.startswith("blocks differ in how much attention they have")
    assert said["per-block", 1] == []  # whether a step is small enough depends on which block's unit comes first
    (beyond,) = said["per-block", 10**6]
    assert beyond.startswith("at most ")
