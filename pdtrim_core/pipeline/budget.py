"""What a budget takes, and whether a pruner can keep to it, from a model's config alone: no weights are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.plan_kinds import Searcher, StageSplitter
from pdtrim_core.api.prune_facts import PruneFacts
from pdtrim_core.api.recovery_facts import RecoveryFacts
from pdtrim_core.api.stage_facts import StageFacts
from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.auto_class import auto_class_of, why_no_model
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.limits import learned_positions
from pdtrim_core.model.sizes import sizes_of
from pdtrim_core.model.small_config import quietly, small_copy
from pdtrim_core.model.supported import check_blocks, check_config, check_own_weights
from pdtrim_core.pipeline.check_formats import check_formats
from pdtrim_core.pipeline.check_recoveries import fitting_recoveries
from pdtrim_core.plan.costs import ModelSizes
from pdtrim_core.plan.elements import PARTS
from pdtrim_core.recipe.recipe import Recipe

ROUNDING = 1e-9


@dataclass(frozen=True)
class Ceiling:
    """What a searcher or splitter lets prefill cost at most, as a share of the dense model's prefill with its head.

    `unified_blocks` of the model's `blocks` are those without which a unified plan costs as much prefill.
    """

    component: str
    prefill_at_most: float
    unified_blocks: float
    blocks: int

    def __str__(self) -> str:
        what = f"{self.component}: prefill_at_most = {self.prefill_at_most:g}"
        if self.unified_blocks <= 0:
            return f"{what}: no less prefill than that of the dense model, so it bounds nothing"
        if self.unified_blocks > self.blocks - 1:
            return f"{what}: less prefill than that of any unified plan"
        return f"{what}: as much prefill as a unified plan without {self.unified_blocks:.1f} blocks of {self.blocks}"


@dataclass(frozen=True)
class Budget:
    """How many of a model's blocks go, and the share of all parameters that goes (a fraction of 1).

    `removed` is None for a pruner of heads, channels or hidden sizes, which takes the share from all blocks. `ceilings` are
    those of the searcher and the splitter. `weights` is False for a config without weights, of a model that is only planned.
    With `parts` the attention and the MLP of blocks go apart, with as many bytes as so many blocks have.
    """

    model: str
    blocks: int
    removed: int | None
    share: float
    ceilings: tuple[Ceiling, ...] = ()
    weights: bool = True
    parts: bool = False

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else there is to say, a line each."""
        planned = (
            () if self.weights else (f"{self.model} is a config without weights: its sizes are told, but no run can open it",)
        )
        return (*map(str, self.ceilings), *planned)

    def __str__(self) -> str:
        if self.removed is None:
            return f"{100 * self.share:.2f} % of the parameters of {self.model} are to go"
        if self.parts:
            what = f"parts of the {self.blocks} blocks go, with as many bytes as {self.removed} blocks have"
            return f"{what}, {100 * self.share:.2f} % of the parameters of {self.model}"
        return f"{self.removed} of {self.blocks} blocks go, {100 * self.share:.2f} % of the parameters of {self.model}"


def sizes_from_config(config: Any, host: PluginHost, name: str) -> ModelSizes:
    """Return a model's sizes from its transformers config, on the meta device. Raises `PdtrimError` for what no run opens."""
    return sizes_of(*_without_weights(config, host, name))


def _without_weights(config: Any, host: PluginHost, name: str) -> tuple[Any, BlockLayout]:
    """Return a model on the meta device, and where its blocks are."""
    check_config(config, name)
    try:
        # torch warns of tensors without numbers, which are refused below.
        with torch.device("meta"), quietly():
            model = auto_class_of(config).from_config(config, trust_remote_code=False)
    except Exception as error:
        # Each architecture trips over a senseless number in its own way.
        raise PdtrimError(f"cannot make a model of the config of {name}: {why_no_model(error)}") from error
    empty = [key for key, parameter in model.named_parameters() if not parameter.numel()]
    if empty:
        raise PdtrimError(f"cannot make a model of the config of {name}: a size in it is 0, so {empty[0]} holds no number")
    layout = host.find_blocks(model, name)
    blocks = tuple(model.get_submodule(layout.blocks))
    check_blocks(len(blocks), name)
    check_own_weights(blocks, name)
    return model, layout


def budget_of(recipe: Recipe, host: PluginHost) -> Budget:
    """Return what a recipe's budget comes to.

    Raises `PdtrimError` where its pruner, searcher or splitter cannot do that, a recovery could not do its work, or layers cannot
    have the formats of the recipe.
    """
    with blame(host.label_of(recipe.model)):
        config = recipe.model.open_config()
        has_weights = recipe.model.check_weights() is not False
    name, pruner, text = recipe.model.path, recipe.pruner, config.get_text_config()
    model, layout = _without_weights(config, host, name)
    sizes = sizes_of(model, layout)
    count = removed_blocks(recipe, sizes, name)
    check_pruner(recipe, sizes, name, text.model_type)
    check_stages(recipe, sizes, name)
    if recipe.drops_parts:
        BlockModel(small_copy(model), None, layout, name=name).check_parts(PARTS)
    positions = learned_positions(model, layout.blocks, getattr(text, "max_position_embeddings", None))
    fitting_recoveries(recipe, RecoveryFacts(name, text.model_type, layout), positions)
    check_formats(recipe, model, layout, name=name, family=text.model_type)
    ceilings = tuple(_ceilings(recipe, sizes, name))
    if pruner is not None and (pruner.narrows or pruner.replaces_model):
        return Budget(
            name, len(sizes.blocks), None, removed_parameters(recipe, sizes, count) / sizes.parameters, ceilings, has_weights
        )
    share = sizes.share_of_parameters(count)
    return Budget(name, len(sizes.blocks), count, share, ceilings, has_weights, parts=recipe.drops_parts)


def check_pruner(recipe: Recipe, sizes: ModelSizes, model: str, family: str) -> None:
    """Raise `PdtrimError` where a recipe has a pruner that is certain to refuse its budget or the model."""
    if recipe.pruner is None:
        return
    count = removed_blocks(recipe, sizes, model)
    facts = PruneFacts(model, family, sizes, blocks=count, parameters=removed_parameters(recipe, sizes, count))
    with blame(recipe.host.label_of(recipe.pruner)):
        recipe.pruner.check(facts)


def check_stages(recipe: Recipe, sizes: ModelSizes, model: str) -> None:
    """Raise `PdtrimError` where it is certain that a recipe's searcher or splitter cannot do what its options demand."""
    facts, problems = _stage_facts(recipe, sizes, model), list[str]()
    for component in _of_stages(recipe):
        with blame(recipe.host.label_of(component)):
            problems += component.problems(facts)
    if problems:
        raise PdtrimError("; also, ".join(problems))


def _ceilings(recipe: Recipe, sizes: ModelSizes, model: str) -> Iterator[Ceiling]:
    """Yield what the searcher and the splitter let prefill cost at most."""
    facts = _stage_facts(recipe, sizes, model)
    for component in _of_stages(recipe):
        with blame(recipe.host.label_of(component)):
            share = component.prefill_ceiling
        if share is not None:
            label = f"{component.kind} {component.name}"
            yield Ceiling(label, share, facts.blocks_of_unified(share), len(sizes.blocks))


def _stage_facts(recipe: Recipe, sizes: ModelSizes, model: str) -> StageFacts:
    pruner = recipe.pruner
    whole = not recipe.drops_parts and (pruner is None or not pruner.narrows)
    costs = CostModel(len(sizes.blocks), sizes, recipe.settings.evaluation.truncates_prefill)
    return StageFacts(costs, removed_blocks(recipe, sizes, model) if whole else None)


def _of_stages(recipe: Recipe) -> list[Searcher | StageSplitter]:
    """Return the components of a recipe that choose what prefill loses; a pruner replaces them."""
    parts = (recipe.searcher, recipe.splitter)
    return [part for part in parts if part.kind in recipe.kinds]


def removed_blocks(recipe: Recipe, sizes: ModelSizes, model: str) -> int:
    """Return how many blocks decode loses. Raises `PdtrimError` where that leaves it none, or is far from what was asked."""
    prune, there = recipe.settings.prune, len(sizes.blocks)
    count = prune.blocks if prune.blocks is not None else sizes.blocks_for(prune.fraction or 0)
    if count >= there:
        raise PdtrimError(
            f"cannot remove {count} of the {there} blocks of {model}: decode must keep at least one "
            f"(prune.blocks can be 0 to {there - 1})"
        )
    if prune.fraction is not None and (recipe.pruner is None or not (recipe.pruner.narrows or recipe.pruner.replaces_model)):
        _check_fraction(prune.fraction, count, sizes, model)
    return count


def _check_fraction(fraction: float, count: int, sizes: ModelSizes, model: str) -> None:
    """Raise `PdtrimError` for a share that so many whole blocks miss by more than half a block."""
    reached, each = sizes.share_of_parameters(count), sizes.share_of_parameters(1)
    if abs(reached - fraction) <= each / 2 * (1 + ROUNDING):
        return
    there = len(sizes.blocks)
    raise PdtrimError(
        f"prune.fraction = {fraction:g} cannot be reached: each of the {there} blocks of {model} holds {100 * each:.2f} % of its "
        f"parameters, so at most {100 * reached:.2f} % go with {count} of them: say prune.fraction = "
        f"{math.floor(1000 * reached) / 1000:g} or less, or prune.blocks"
    )


def removed_parameters(recipe: Recipe, sizes: ModelSizes, blocks: int) -> int:
    """Return how many parameters the budget of a recipe is, which removes so many blocks."""
    fraction = recipe.settings.prune.fraction
    return round((sizes.share_of_parameters(blocks) if fraction is None else fraction) * sizes.parameters)
