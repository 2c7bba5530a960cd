"""A model with the blocks of one stage in place of its own.

Its own forward runs over the other list, renumbered, because transformers takes the length of a cache from its entry 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Merge, Shrink
from pdtrim_core.plan.plan import Plan


@dataclass(frozen=True)
class Step:
    """One entry of a stage's list of blocks.

    `like` is the block whose mask and layer type it takes; a step that is `passed_by` computes K/V and hands its input on;
    `slot` is the decode slot that its K/V belong to, None where decode has no use for them.
    """

    module: nn.Module
    like: int
    passed_by: bool = False
    slot: int | None = None


def prefill_steps(model: BlockModel, plan: Plan, replacements: Mapping[Merge | Shrink, nn.Module]) -> list[Step]:
    """Return what prefill runs, and what it computes for the K/V alone, in order."""
    slots = plan.slots(model.block_count)
    sources = {source.block: source for source in plan.kv_map(model.block_count)}
    steps = []
    for block in range(model.block_count):
        source = sources.get(block)
        number = None if source is None else source.slot
        merge = None if number is None else slots[number].merge
        if merge is not None and source is not None and source.source in ("shadow", "kv-only"):
            steps.append(Step(replacements[merge], merge.keep, passed_by=True, slot=number))
            number = None
        match plan.state("prefill", block):
            case "run":
                steps.append(Step(model.blocks[block], block, slot=number))
            case "kv-only" if merge is None and number is not None:
                module = _shrunk(model, block, slots[number].shrinks, replacements)
                steps.append(Step(module, block, passed_by=True, slot=number))
            case "shrunk":
                steps.append(Step(_shrunk(model, block, plan.prefill.shrinks_at(block), replacements), block, slot=number))
            case "merged":
                (merge,) = (element for element in plan.prefill.at(block) if isinstance(element, Merge))
                steps.append(Step(replacements[merge], merge.keep, slot=number))
    return steps


def decode_steps(model: BlockModel, plan: Plan, replacements: Mapping[Merge | Shrink, nn.Module]) -> list[Step]:
    """Return what decode runs, in the order of its slots."""
    steps = []
    for slot in plan.slots(model.block_count):
        if slot.merge is not None:
            steps.append(Step(replacements[slot.merge], slot.merge.keep))
        else:
            steps.append(Step(_shrunk(model, slot.block, slot.shrinks, replacements), slot.block))
    return steps


def _shrunk(
    model: BlockModel, block: int, shrinks: Sequence[Shrink], replacements: Mapping[Merge | Shrink, nn.Module]
) -> nn.Module:
    return model.narrowed(shrinks, replacements) if shrinks else model.blocks[block]


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
            if step.passed_by:
                vars(step.module)["forward"] = model.passing_by(step.module)
        yield
    finally:
        setattr(parent, name, blocks)
        for attributes, before in kept:
            attributes.clear()
            attributes.update(before)


def _renumber(model: BlockModel, steps: Sequence[Step]) -> None:
    """Give each step its own entry in the cache, and cut the config's lists of one entry a block to match."""
    for number, step in enumerate(steps):
        for module in step.module.modules():
            if hasattr(module, "layer_idx"):
                vars(module)["layer_idx"] = number
    config = vars(model.config)
    for key, value in list(config.items()):
        if isinstance(value, list) and len(value) == model.block_count:
            config[key] = [value[step.like] for step in steps]
    config["num_hidden_layers"] = len(steps)
