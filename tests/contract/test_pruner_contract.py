"""Broken components are caught by the pruner contract, each by the test that is meant for it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import pytest
import torch

from pdtrim_core.api import BlockModel, Drop, Merge, PdtrimError, PruneContext, Pruned, PruneFacts, Pruner, Removal, Shrink
from pdtrim_core.testing import PrunerContract

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    Failing = Callable[..., set[str]]


class Middle(Pruner):
    """Drops the blocks in the middle."""

    name = "middle"

    def prune(self, context: PruneContext) -> Pruned:
        return Pruned(_middle(context.model.block_count, context.blocks))


def _middle(count: int, blocks: int) -> Removal:
    first = (count - blocks) // 2
    return Removal(Drop(first + number) for number in range(blocks))


class HeadsAlone(Pruner):
    """Removes K/V heads with their query heads, round by round from every block, and one at least stays in each."""

    name = "heads-alone"
    part: ClassVar[Literal["attention", "mlp"]] = "attention"

    def prune(self, context: PruneContext) -> Pruned:
        model = context.model
        units = model.units(0)
        each, count = units.parameters(self.part), units.count(self.part)
        wanted = round(context.parameters / each)
        if wanted > (count - 1) * model.block_count:
            raise PdtrimError(f"pruner '{self.name}': that many cannot go: remove fewer")
        lost = [wanted // model.block_count + (block < wanted % model.block_count) for block in range(model.block_count)]
        return Pruned(Removal(Shrink(block, self.part, tuple(range(gone))) for block, gone in enumerate(lost) if gone))


class ChannelsAlone(HeadsAlone):
    """Removes MLP channels, round by round from every block."""

    name = "channels-alone"
    part: ClassVar[Literal["attention", "mlp"]] = "mlp"


class HalfTheHeads(HeadsAlone):
    """Stops half-way."""

    def prune(self, context: PruneContext) -> Pruned:
        return super().prune(replace(context, parameters=context.parameters // 2))


class OneMore(Middle):
    """Goes one block too far."""

    def prune(self, context: PruneContext) -> Pruned:
        return Pruned(_middle(context.model.block_count, context.blocks + 1))


class NeverNothing(Middle):
    """Always finds a channel to take."""

    def prune(self, context: PruneContext) -> Pruned:
        removal = _middle(context.model.block_count, context.blocks)
        return Pruned(removal.with_(Shrink(0, "mlp", (0,))))


class MergesWithoutABlock(Middle):
    """Merges, and forgets the block that stands for the pair."""

    def prune(self, context: PruneContext) -> Pruned:
        return Pruned(Removal([Merge(keep=2 * number, drop=2 * number + 1) for number in range(context.blocks)]))


class DrawsGlobally(Middle):
    """Draws from torch's generator."""

    def prune(self, context: PruneContext) -> Pruned:
        drawn = torch.randperm(context.model.block_count)[: context.blocks].tolist()
        return Pruned(Removal(Drop(block) for block in drawn))


class LeavesAGradient(Middle):
    """Looks at gradients and does not clear them away."""

    def prune(self, context: PruneContext) -> Pruned:
        weight = next(context.model.blocks[0].parameters())
        weight.grad = torch.zeros_like(weight)
        return super().prune(context)


class LeavesItTrainable(Middle):
    """Makes a block take gradients, and does not take that back."""

    def prune(self, context: PruneContext) -> Pruned:
        context.model.blocks[0].requires_grad_(requires_grad=True)
        return super().prune(context)


class LeavesAHook(Middle):
    """Watches the gradients of a weight for ever."""

    def prune(self, context: PruneContext) -> Pruned:
        weight = next(context.model.blocks[0].parameters()).requires_grad_()
        weight.register_post_accumulate_grad_hook(lambda tensor: None)  # type: ignore[no-untyped-call]
        weight.requires_grad = False
        return super().prune(context)


class BeginsAgain(Middle):
    """Tells how far each of its two passes is, as though it were the only one."""

    def prune(self, context: PruneContext) -> Pruned:
        for share in (0.5, 1.0) * 2:
            context.reached(share)
        return super().prune(context)


class MissesTheChannels(Middle):
    """Counts channels that are not there."""

    def prune(self, context: PruneContext) -> Pruned:
        return Pruned(
            Removal([Shrink(block, "mlp", tuple(range(40, 40 + 60 * context.blocks))) for block in (0,) * (context.blocks > 0)])
        )


class FailsInARun(Middle):
    """Works on the models of tests alone."""

    def prune(self, context: PruneContext) -> Pruned:
        if context.batch_tokens is None:
            raise ValueError("no batch size was given")
        return super().prune(context)


class Scaled(Pruner):
    """Gives a copy of the model without the blocks in the middle."""

    name = "scaled"
    replaces_model: ClassVar[bool] = True

    def prune(self, context: PruneContext) -> Pruned:
        return Pruned(replaced=_without(context.model, context.blocks))

    def restore(self, model: BlockModel, weights: Mapping[str, Tensor]) -> BlockModel:
        copied = _without(model, model.block_count - 1 - max(int(name.split(".")[2]) for name in weights if ".layers." in name))
        copied.model.load_state_dict(weights, strict=False)
        return copied


def _without(model: BlockModel, blocks: int) -> BlockModel:
    """Return a copy of a model with the last blocks cut off."""
    copied = copy.deepcopy(model.model)
    copied.model.layers = copied.model.layers[: model.block_count - blocks]
    copied.config.num_hidden_layers -= blocks
    return BlockModel(copied, model.tokenizer, model.layout, name=model.name)


class ReplacesInSecret(Scaled):
    """Gives a model, and its class does not say so."""

    replaces_model: ClassVar[bool] = False


class ChangesWithNothingToDo(Scaled):
    """Changes the function of the model even for a budget of nothing."""

    def prune(self, context: PruneContext) -> Pruned:
        copied = _without(context.model, context.blocks)
        copied.model.lm_head.weight.data.mul_(1.5)
        return Pruned(replaced=copied)


class RestoresTheDense(Scaled):
    """Restores the wrong model."""

    def restore(self, model: BlockModel, weights: Mapping[str, Tensor]) -> BlockModel:
        del weights
        return model


class RefusesWhatItCanDo(Middle):
    """Says before a run that the budget is beyond it, and prunes all the same."""

    def problems(self, facts: PruneFacts) -> list[str]:
        return ["that is too much"] if facts.blocks > 1 else []


@pytest.mark.parametrize("component", [Middle, Scaled, HeadsAlone, ChannelsAlone])
def test_a_good_pruner_passes_every_test(component: type[Pruner], failing: Failing) -> None:
    assert failing(PrunerContract, component) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (OneMore, "test_what_it_removes_is_near_the_budget"),
        (HalfTheHeads, "test_what_it_removes_is_near_the_budget"),
        (ReplacesInSecret, "test_what_it_removes_is_near_the_budget"),
        (NeverNothing, "test_nothing_goes_where_nothing_is_asked_for"),
        (ChangesWithNothingToDo, "test_nothing_goes_where_nothing_is_asked_for"),
        (MergesWithoutABlock, "test_its_plan_can_be_measured_and_refined"),
        (DrawsGlobally, "test_the_same_model_and_tokens_give_the_same_removal"),
        (LeavesAGradient, "test_the_model_is_left_as_it_was"),
        (LeavesItTrainable, "test_the_model_is_left_as_it_was"),
        (LeavesAHook, "test_the_model_is_left_as_it_was"),
        (BeginsAgain, "test_the_shares_that_it_tells_of_its_work_rise_to_one_at_most"),
        (MissesTheChannels, "test_shrinks_name_units_that_the_blocks_have"),
        (RefusesWhatItCanDo, "test_what_it_calls_beyond_it_is_refused"),
        (RestoresTheDense, "test_a_replaced_model_can_be_read_again"),
        (FailsInARun, "test_a_run_refines_its_removal"),
    ],
)
def test_a_broken_pruner_is_caught(component: type[Pruner], test: str, failing: Failing) -> None:
    assert failing(PrunerContract, component, test) == {test}
