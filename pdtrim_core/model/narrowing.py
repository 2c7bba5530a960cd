"""Blocks with fewer heads, channels or experts, cut from the dense model's own blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pdtrim_core.errors import PlanError
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.experts import Experts, experts_in, keep_experts
from pdtrim_core.model.quantized_linear import QuantizedLinear
from pdtrim_core.plan.elements import Shrink, ShrunkPart

COUNTS = {"attention": ("num_heads", "num_key_value_heads"), "mlp": ("intermediate_size",)}
"""Attributes by which some families' modules say how many heads or channels they have."""


UNITS: Mapping[ShrunkPart, str] = {"attention": "K/V heads", "mlp": "MLP channels", "experts": "experts"}
"""What the units of a part are called."""
_FUSED = "this family's projections are fused, or are experts; choose a method that removes whole blocks"
_WHY_NONE: Mapping[ShrunkPart, str] = {
    "attention": _FUSED,
    "mlp": _FUSED,
    "experts": "it has none among which a router chooses, or it is not certain which these are",
}


def head_dim_of(config: Any) -> int:
    """Return the numbers that one attention head has."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


class Units:
    """The heads, channels and experts that a block has, and what each of them holds.

    A unit of `attention` is a K/V head with the query heads that read it, one of `mlp` a channel: a row of each projection
    into it and a column of the one out of it. A part is missing where a family's projections are fused or are experts. A unit of
    `experts` is one that a router chooses, with its row of the router; they are missing where it is not certain which these are.
    """

    def __init__(self, block: nn.Module, layout: BlockLayout, head_dim: int) -> None:
        self._block = block
        self._names = {"attention": layout.attention, "mlp": layout.mlp}
        self._head_dim = head_dim

    def has(self, part: str) -> bool:
        """Tell whether units of a part can go."""
        if part == "experts":
            return self.experts is not None
        return bool(self._names[part]) and all(isinstance(linear, nn.Linear) for linear in self.projections(part))

    @cached_property
    def experts(self) -> Experts | None:
        """The block's experts, where there are some; see `experts_in`."""
        return experts_in(self._block)

    def projections(self, part: str) -> list[nn.Module]:
        """Return the projections of a part: those into its units, and last the one out of them."""
        return [_find(self._block, name) for name in self._names[part]]

    def count(self, part: str) -> int:
        """Return how many units a part has."""
        if part == "experts" and self.experts is not None:
            return self.experts.count
        return self._first(part).out_features // self._size(part)

    def parameters(self, part: str) -> int:
        """Return how many parameters one unit holds."""
        if part == "experts" and self.experts is not None:
            numbers = sum(weight.numel() for weight in self._block.get_submodule(self.experts.name).parameters())
            return numbers // self.experts.count + self.experts.routing.parameters
        *into, out = self.projections(part)
        linears = [linear for linear in into if isinstance(linear, nn.Linear)]
        rows = sum(linear.out_features * (linear.in_features + (linear.bias is not None)) for linear in linears)
        assert isinstance(out, nn.Linear)
        return (rows + out.in_features * out.out_features) // self.count(part)

    def numbers(self, linear: nn.Module, part: str, units: Sequence[int], *, out: bool = False) -> list[int]:
        """Return which rows of a projection (columns of the last one, `out`) belong to some units, in rising order."""
        assert isinstance(linear, nn.Linear)
        each = (linear.in_features if out else linear.out_features) // self.count(part)
        return [number for unit in sorted(units) for number in range(unit * each, (unit + 1) * each)]

    def _first(self, part: str) -> nn.Linear:
        # K tells the K/V heads (Q has more of them), and of an MLP any projection into it tells the channels.
        linear = self.projections(part)[1 if part == "attention" else 0]
        assert isinstance(linear, nn.Linear)
        return linear

    def _size(self, part: str) -> int:
        return self._head_dim if part == "attention" else 1


def narrowed(
    block: nn.Module, layout: BlockLayout, head_dim: int, shrinks: Sequence[Shrink], outputs: Mapping[Shrink, nn.Module]
) -> nn.Module:
    """Return a block without the units that some shrinks remove; all weights that stay whole are shared with the block.

    `outputs` has the projection out of a part where it is not the dense one less its columns. Raises `PlanError` where the
    block has no such units, or would keep none.
    """
    units = Units(block, layout, head_dim)
    shared = {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())}
    thin = copy.deepcopy(block, shared)
    for shrink in shrinks:
        kept = _kept(units, shrink)
        if shrink.part == "experts" and units.experts is not None:
            keep_experts(thin, units.experts, kept)
            continue
        names = layout.attention if shrink.part == "attention" else layout.mlp
        for name in names:
            out = name == names[-1]
            linear = _find(block, name)
            replaced = outputs.get(shrink) if out else None
            _put(thin, name, replaced or _cut(linear, units.numbers(linear, shrink.part, kept, out=out), columns=out))
        for module in {_find(thin, name.rpartition(".")[0]) for name in names}:
            for attribute in COUNTS[shrink.part]:
                if isinstance(before := vars(module).get(attribute), int):
                    setattr(module, attribute, before * len(kept) // units.count(shrink.part))
    return thin


def _kept(units: Units, shrink: Shrink) -> list[int]:
    what = UNITS[shrink.part]
    if not units.has(shrink.part):
        raise PlanError(f"block {shrink.block} cannot lose {what}: {_WHY_NONE[shrink.part]}")
    count = units.count(shrink.part)
    if shrink.units[-1] >= count:
        raise PlanError(f"block {shrink.block} has {what} 0 to {count - 1}, and the plan removes {shrink.units[-1]}")
    kept = [unit for unit in range(count) if unit not in set(shrink.units)]
    if not kept:
        raise PlanError(f"block {shrink.block} would lose all of its {count} {what}: drop the block, or keep one")
    if shrink.part == "experts" and units.experts is not None:
        problem = units.experts.routing.problem(count, shrink.units)
        if problem:
            raise PlanError(f"block {shrink.block} {problem}")
    return kept


def _cut(linear: nn.Module, numbers: Sequence[int], *, columns: bool) -> nn.Linear:
    """Return a linear with some of its rows, or columns, in the order given."""
    assert isinstance(linear, nn.Linear)
    at = torch.tensor(numbers, device=linear.weight.device)
    if isinstance(linear, QuantizedLinear) and not columns:
        return linear.with_rows(at)
    weight = linear.weight.detach().index_select(1 if columns else 0, at)
    cut = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None, device="meta")
    cut.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None:
        bias = linear.bias.detach() if columns else linear.bias.detach().index_select(0, at)
        cut.bias = nn.Parameter(bias, requires_grad=False)
    return cut.train(linear.training)


def _find(block: nn.Module, name: str) -> nn.Module:
    return block.get_submodule(name)


def _put(block: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(block.get_submodule(parent), attribute, module)
