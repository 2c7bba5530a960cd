"""allocate: the knapsack against all combinations, what it measures, and budgets."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdtrim_core import Drop, PdtrimError, Removal, Shrink
from pdtrim_core.testing import prune_context, tiny_llama, tiny_model
from pdtrim_plugins.pruners import Allocate, Flap
from pdtrim_plugins.pruners.allocate import QUANTA, Choice, cheapest, widths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdtrim_core.api import BlockModel, PruneContext, Pruned

WINDOWS = [tuple(Random(number).randrange(256) for _ in range(16)) for number in range(7)]


def context(model: BlockModel, share: float, **more: Any) -> PruneContext:
    """Return a context whose budget is a share of all parameters."""
    parameters = round(share * model.sizes.parameters)
    return prune_context(model, WINDOWS, blocks=1, parameters=parameters, **more)


def pruned_by(model: BlockModel, share: float, **options: Any) -> Pruned:
    return Allocate(**{"tokens": 16, **options}).prune(context(model, share))


def weights_of(model: BlockModel, removal: Removal) -> int:
    """Return how many weights a removal takes, by the sizes of the model."""
    units = (element for element in removal if isinstance(element, Shrink))
    narrowed = sum(len(one.units) * model.sizes.blocks[one.block].units[one.part][1] for one in units)
    return narrowed + sum(model.sizes.blocks[one.block].parameters for one in removal if isinstance(one, Drop))


@st.composite
def blocks(draw: st.DrawFn) -> list[list[Choice]]:
    """Blocks with a few choices, whose weights are whole quanta of a budget of 2000."""
    number = st.integers(1, 900)
    cost = st.floats(0, 10)
    return [
        [Choice((Drop(block),), draw(number), draw(cost)) for _ in range(draw(st.integers(0, 3)))]
        for block in range(draw(st.integers(1, 5)))
    ]


@settings(max_examples=200, deadline=None)
@given(blocks())
def test_the_knapsack_is_the_best_of_all_combinations(choices: list[list[Choice]]) -> None:
    budget = QUANTA
    tried = [
        (abs(sum(one.weights for one in of) - budget), sum(one.weights for one in of), sum(one.cost for one in of))
        for of in ([one for one in chosen if one] for chosen in product(*([None, *of_block] for of_block in choices)))
        if sum(one.weights for one in of) <= budget + 1
    ]
    found = cheapest(choices, budget)
    away, weights, cost = min(tried)
    assert sum(choice.weights for choice in found) == weights
    assert abs(weights - budget) == away
    assert sum(choice.cost for choice in found) == pytest.approx(cost)


@pytest.mark.parametrize(("count", "expected"), [(1, []), (2, [1]), (3, [1, 2]), (16, [2, 4, 8, 12])])
def test_each_part_keeps_a_unit_and_loses_one_at_least(count: int, expected: Sequence[int]) -> None:
    assert widths(count, (0.125, 0.25, 0.5, 0.75)) == list(expected)


@pytest.mark.numeric
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_a_removal_has_the_weights_of_the_budget(share: float) -> None:
    model = tiny_llama()
    removal = pruned_by(model, share).removal
    smallest = min(each for of_block in model.sizes.blocks for _, each in of_block.units.values())
    assert abs(weights_of(model, removal) - share * model.sizes.parameters) <= max(3 * smallest, 0.02 * model.sizes.parameters)


@pytest.mark.numeric
def test_what_costs_nothing_goes_first() -> None:
    """A block that is the identity is dropped where that is all that the budget asks for."""
    model = tiny_llama(silent={2})
    share = model.sizes.blocks[2].parameters / model.sizes.parameters
    assert pruned_by(model, share).removal == Removal([Drop(2)])
    assert Drop(2) not in pruned_by(model, share, drops=False).removal


@pytest.mark.numeric
def test_the_units_and_the_biases_are_flaps() -> None:
    model = tiny_llama()
    found = pruned_by(model, 0.1, drops=False)
    flap = Flap(tokens=16)
    means = {place: seen.mean_C for place, seen in flap.inputs(model, WINDOWS).items()}
    assert {*found.modules} == {*found.removal}
    for shrink, module in found.modules.items():
        assert isinstance(shrink, Shrink)
        out: Any = model.units(shrink.block).projections(shrink.part)[-1]
        gone = model.units(shrink.block).numbers(out, shrink.part, shrink.units, out=True)
        expected = out.weight[:, gone].float() @ means[shrink.block, shrink.part][gone].float()
        assert (module.bias - expected).abs().max() < 1e-6


@pytest.mark.numeric
def test_it_measures_the_divergence_of_each_step_alone_and_of_all_together() -> None:
    model = tiny_llama()
    asked: list[Removal] = []
    usual = context(model, 0.1)

    def divergences(sequences: Sequence[Sequence[int]]) -> Any:
        assert usual.divergences is not None
        divergence = usual.divergences(sequences)

        def recorded(removal: Removal) -> float:
            asked.append(removal)
            return divergence(removal)

        return recorded

    notes: list[str] = []
    found = Allocate(tokens=16).prune(context(model, 0.1, divergences=divergences, note=notes.append))
    assert all(len(removal) == 1 for removal in asked[:-1])
    assert asked[-1] == found.removal
    assert len({*asked[:-1]}) == len(asked) - 1
    assert notes[0].startswith("pruner 'allocate': the steps were measured at ")


@pytest.mark.numeric
def test_a_family_whose_projections_are_fused_loses_whole_blocks() -> None:
    removal = pruned_by(tiny_model("phi3"), 0.15).removal
    assert removal
    assert all(isinstance(element, Drop) for element in removal)


@pytest.mark.parametrize(
    ("options", "share", "said"),
    [
        ({"shares": (0.5, 1.5)}, 0.1, "a share of 1.5 is not between 0 and 1"),
        ({"shares": (0.25,), "drops": False}, 0.5, "lower prune.blocks or prune.fraction, or name larger shares"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_measured(options: dict[str, Any], share: float, said: str) -> None:
    with pytest.raises(PdtrimError, match=said):
        Allocate(**options).prune(context(tiny_llama(), share, divergences=None))


@pytest.mark.numeric
def test_nothing_is_removed_for_no_budget() -> None:
    assert pruned_by(tiny_llama(), 0.0).removal == Removal()
