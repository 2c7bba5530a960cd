"""K/V of the prompt that another module makes than the one that reads them, where both run in one pass.

Shape suffixes: N tokens counted through all rows, D numbers of a token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pdtrim_core.model.quantized_linear import rounds_alike


def same_kv(one: nn.Module, other: nn.Module, names: Sequence[str]) -> bool:
    """Tell whether two blocks make K/V with the same weights; `names` are the parts of a block that make them."""
    return one is other or not list(_other_parts(one, other, names))


def with_heads(block: nn.Module, projections: Sequence[str], heads: Sequence[int], count: int) -> nn.Module:
    """Return a block whose projections `projections` of K and V give the numbers of some of its `count` K/V heads alone.

    All else is shared with the block, and gradients flow to its weights.
    """
    fewer = copy.deepcopy(block, {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())})
    for name in projections:
        owner, _, attribute = name.rpartition(".")
        setattr(fewer.get_submodule(owner), attribute, _SomeHeads(block.get_submodule(name), tuple(heads), count))
    return fewer


class _SomeHeads(nn.Module):
    def __init__(self, projection: nn.Module, heads: tuple[int, ...], count: int) -> None:
        super().__init__()
        self.projection = projection
        self._heads = heads
        self._count = count

    def forward(self, given_ND: Tensor) -> Tensor:
        made_ND: Tensor = self.projection(given_ND)
        of_heads = made_ND.view(*made_ND.shape[:-1], self._count, -1)
        return of_heads[..., list(self._heads), :].flatten(-2)


@contextmanager
def kv_made_by(maker: nn.Module, reader: nn.Module, names: Sequence[str], at_N: Tensor) -> Iterator[None]:
    """Let some tokens get their K/V from the weights of another block, inside the context.

    `reader` runs all tokens; at `at_N` its parts `names`, which are given `[B, T, D]`, answer as those of `maker` do. What else
    such a token computes there is nonsense, and is replaced by whoever asks.
    """
    changed = [(reader.get_submodule(name), maker.get_submodule(name)) for name in _other_parts(maker, reader, names)]
    kept = [vars(part).get("forward") for part, _ in changed]
    try:
        for part, other in changed:
            vars(part)["forward"] = _forward(part.forward, other, at_N)
        yield
    finally:
        for (part, _), before in zip(changed, kept, strict=True):
            if before is None:
                vars(part).pop("forward", None)
            else:
                vars(part)["forward"] = before


def _forward(own: Callable[[Tensor], Tensor], other: nn.Module, at_N: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(given_BTD: Tensor) -> Tensor:
        made_BTD = own(given_BTD)
        theirs_ND = other(given_BTD.flatten(0, 1)[at_N.to(given_BTD.device)])
        return made_BTD.flatten(0, 1).index_copy(0, at_N.to(given_BTD.device), theirs_ND).view_as(made_BTD)

    return forward


def _other_parts(one: nn.Module, other: nn.Module, names: Sequence[str]) -> Iterator[str]:
    """Yield the parts in which two blocks do not have the same weights, or will not, since they are trained in one of them.

    A part in whose number format inputs are rounded, too, is another one than that without it.
    """
    for name in names:
        parts = one.get_submodule(name), other.get_submodule(name)
        ours, theirs = (list(part.parameters()) for part in parts)
        if not rounds_alike(*parts) or len(ours) != len(theirs) or not all(map(_same, ours, theirs)):
            yield name


def _same(one: Tensor, other: Tensor) -> bool:
    # Where training begins the numbers are equal, and no gradient may reach those of the other stage.
    return one is other or (torch.equal(one, other) and not (one.requires_grad or other.requires_grad))
