"""Reads the sizes that costs are computed from off a model."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import nn

from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.block_parts import part_names
from pdtrim_core.model.narrowing import UNITS, Units, head_dim_of
from pdtrim_core.plan.costs import BlockSizes, ModelSizes


def sizes_of(model: Any, layout: BlockLayout) -> ModelSizes:
    """Read the sizes off a model; on the meta device no weights are needed."""
    config = model.config.get_text_config()
    blocks = tuple(_block_sizes(block, config, layout) for block in model.get_submodule(layout.blocks))
    unique = {id(parameter): parameter for parameter in model.parameters()}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    of_head = list(head.parameters()) if head is not None else []
    return ModelSizes(
        blocks=blocks,
        parameters=sum(parameter.numel() for parameter in unique.values()),
        head=sum(parameter.numel() for parameter in of_head),
        bytes_per_number=next(iter(unique.values())).element_size(),
        own_head=sum(parameter.numel() for parameter in of_head if parameter is not embedding.weight),
    )


def _block_sizes(block: nn.Module, config: Any, layout: BlockLayout) -> BlockSizes:
    heads, head_dim = config.num_attention_heads, head_dim_of(config)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    expert_count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    chosen = getattr(config, "num_experts_per_tok", None) or expert_count
    share = Fraction(chosen, expert_count)
    total, active = _numbers_of(block, share)
    units = Units(block, layout, head_dim)
    if units.has("attention"):
        # Of a model that was pruned before, a block may have fewer heads than its config says.
        heads, kv_heads = heads * units.count("attention") // kv_heads, units.count("attention")
    if units.experts is not None:
        share = Fraction(units.experts.routing.top_k, units.experts.count)
        total, active = _numbers_of(block, share)
    return BlockSizes(
        parameters=total,
        active=active,
        kv_parameters=_kv_parameters(block, layout) or 2 * kv_heads * head_dim * config.hidden_size,
        kv_width=2 * kv_heads * head_dim,
        attention_width=heads * head_dim,
        units={part: (units.count(part), units.parameters(part)) for part in UNITS if units.has(part)},
        kv_norms=_kv_norms(block, layout),
        parts={part: _numbers_of(block.get_submodule(name), share) for part, name in part_names(block, layout).items()},
        routing=None if units.experts is None else units.experts.routing,
    )


def _numbers_of(module: nn.Module, share: Fraction) -> tuple[int, int]:
    """Return how many parameters a module has, and how many a token reads, where it reads this share of its experts."""
    total = sum(parameter.numel() for parameter in module.parameters())
    experts = sum(p.numel() for name, p in module.named_parameters() if ".experts." in f".{name}.")
    return total, total - experts + int(experts * share)


def _kv_parameters(block: nn.Module, layout: BlockLayout) -> int:
    """Return what a block's K and V projections hold, whose inputs a replaced model may have cut; 0 where they are fused."""
    return sum(parameter.numel() for name in layout.attention[1:3] for parameter in block.get_submodule(name).parameters())


def _kv_norms(block: nn.Module, layout: BlockLayout) -> int:
    """Return what K and V take beside their projections: the norm in front, and K's own."""
    names = [name for name in layout.kv if name not in layout.attention]
    return sum(parameter.numel() for name in names for parameter in block.get_submodule(name).parameters())
