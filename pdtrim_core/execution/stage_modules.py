"""A model that runs the blocks of one stage instead of its own.

Its own forward runs over the other list, renumbered, because transformers takes the length of a cache from its entry 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.logits_head import given_in_one_piece
from pdtrim_core.model.renumbering import NUMBER
from pdtrim_core.plan.elements import Merge, Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import LayerOf, Plan

Modules = Mapping[Any, nn.Module]
"""What elements and layers run: for a `Merge` the merged block; for a `Shrink` the projection out of its part, where that is not
the dense one less some columns; for a `LayerOf` that layer with the weights that recovery gave it; for a `FirstTokensOf` the
`FirstTokens` of prefill."""


@dataclass(frozen=True)
class Step:
    """One entry of a stage's list of blocks: a layer of the plan and the module that it runs."""

    module: nn.Module
    layer: Layer


def checked_modules(plan: Plan, modules: Modules | None) -> Modules:
    """Return the modules of a plan. Raises `PdtrimError` where one of its merges has none."""
    found = dict(modules or {})
    for element in (*plan.prefill, *plan.decode):
        if isinstance(element, Merge) and element not in found:
            raise PdtrimError(f"the plan has {element}, but no merged block was given for it")
    return found


def module_of(model: BlockModel, plan: Plan, stage: Stage, layer: Layer, modules: Modules) -> nn.Module:
    """Return what a layer of a stage runs: what recovery made of it, or else what the plan left of it."""
    recovered = modules.get(LayerOf.at(plan, stage, layer))
    return removed_module_of(model, layer, modules) if recovered is None else recovered


def removed_module_of(model: BlockModel, layer: Layer, modules: Modules) -> nn.Module:
    """Return what a plan left of a layer: a block of the model, that block less some units or a part, or a merged one."""
    return modules[layer.merge] if layer.merge is not None else model.left_of(layer, modules)


def with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a module with other values of some parameters, given by name; it shares all others with the one given.

    Raises `PdtrimError` for a parameter that the module does not have, or that has another shape.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    changed = copy.deepcopy(module, shared)
    parameters = dict(module.named_parameters())
    for name, weight in weights.items():
        if name not in parameters or parameters[name].shape != weight.shape:
            has = f"of shape {tuple(parameters[name].shape)}" if name in parameters else "of that name"
            raise PdtrimError(f"a layer was given the weight {name} of shape {tuple(weight.shape)}, and it has none {has}")
        owner, _, attribute = name.rpartition(".")
        if weight.is_inference():
            # Computed where no gradients are wanted; a later training may want some that go through it.
            with torch.inference_mode(mode=False):
                weight = weight.clone()  # noqa: PLW2901 - the same weight
        setattr(changed.get_submodule(owner), attribute, nn.Parameter(weight, requires_grad=weight.requires_grad))
    return changed


def changed_weights(module: nn.Module, start: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module that are not those of another one like it, by name."""
    before = dict(start.named_parameters())
    # A shrunk block is cut anew when no one holds it any more: the same numbers are then other tensors.
    return {name: weight for name, weight in module.named_parameters() if not _same(weight, before.get(name))}


def _same(one: Tensor, other: Tensor | None) -> bool:
    return one is other or (other is not None and one.shape == other.shape and torch.equal(one, other))


def steps_of(model: BlockModel, plan: Plan, stage: Stage, modules: Modules) -> list[Step]:
    """Return the layers of a stage with their modules, in order."""
    return [Step(module_of(model, plan, stage, layer, modules), layer) for layer in plan.layers(stage, model.block_count)]


@contextmanager
def as_stage(model: BlockModel, steps: Sequence[Step]) -> Iterator[None]:
    """Give the model another list of blocks, renumbered, with a config to match; put everything back in any case."""
    parent_path, _, name = model.layout.blocks.rpartition(".")
    parent = model.model.get_submodule(parent_path)
    blocks = getattr(parent, name)
    # Attributes that change are kept as they lie in the objects' own dictionaries: a config of transformers would check
    # each single change against the ones that have not come yet.
    changed = [vars(model.config), *(vars(m) for step in steps for m in step.module.modules())]
    kept = [(attributes, dict(attributes)) for attributes in changed]
    try:
        setattr(parent, name, nn.ModuleList([step.module for step in steps]))
        _renumber(model, steps)
        for step in steps:
            if not step.layer.runs:
                vars(step.module)["forward"] = model.passing_by(step.module)
        with given_in_one_piece(model.head):
            yield
    finally:
        setattr(parent, name, blocks)
        for attributes, before in kept:
            attributes.clear()
            attributes.update(before)


def entries_of(steps: Sequence[Step]) -> Iterator[tuple[int, Step]]:
    """Yield the steps that have K/V, each with the number of its entry in the cache."""
    return enumerate(step for step in steps if step.layer.has_kv)


def _renumber(model: BlockModel, steps: Sequence[Step]) -> None:
    """Give each step that has K/V its own entry in the cache, and cut the config's lists of one entry a block to match."""
    names: dict[str, list[str]] = {}
    for path, name in model.numbers:
        names.setdefault(path, []).append(name)
    for number, step in entries_of(steps):
        for path, module in step.module.named_modules():
            for name in {*names.get(path, ()), *({NUMBER} & vars(module).keys())}:
                vars(module)[name] = number
    config = vars(model.config)
    for key, value in list(config.items()):
        if isinstance(value, list) and len(value) == model.block_count:
            config[key] = [value[step.layer.like] for step in steps]
    config["num_hidden_layers"] = len(steps)
