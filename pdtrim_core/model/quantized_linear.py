"""A linear layer that computes as one in another number format does, in the number format of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

from torch import Tensor, nn

Rounding = Callable[[Tensor], Tensor]


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight went through another number format; `rounding` does the same to what it is given, if anything.

    It has the bias of the layer `source`. `scheme` is the name of the format.
    """

    def __init__(self, source: nn.Linear, weight: Tensor, scheme: str, rounding: Rounding | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = source.bias
        self.scheme = scheme
        self.rounding = rounding
        # In a tuple, so that it is no submodule with parameters of its own.
        self._source = (source,)
        self.train(source.training)

    @property
    def source(self) -> nn.Linear:
        """The layer before it got its format."""
        return self._source[0]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch names it so
        """Return the product with what the inputs `[..., inputs]` are in this format."""
        return super().forward(input if self.rounding is None else self.rounding(input))

    def with_rows(self, at: Tensor) -> QuantizedLinear:
        """Return the layer with some of its outputs."""
        source = nn.Linear(self.in_features, len(at), bias=self.bias is not None, device="meta")
        source.weight = nn.Parameter(self.source.weight.detach().index_select(0, at), requires_grad=False)
        if self.bias is not None:
            source.bias = nn.Parameter(self.bias.detach().index_select(0, at), requires_grad=False)
        return QuantizedLinear(source, self.weight.detach().index_select(0, at), self.scheme, self.rounding)


def rounds_alike(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two parts of blocks do the same to what they are given, before their weights come in."""
    of_one, of_other = (part.scheme if _rounds(part) else "" for part in (one, other))
    return bool(of_one == of_other)


def _rounds(part: nn.Module) -> bool:
    return isinstance(part, QuantizedLinear) and part.rounding is not None


def linears_in(block: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a block by their names in it."""
    return {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}


def other_matrices(block: nn.Module) -> list[str]:
    """Return the names of a block's matrices that are no weight of a linear layer, such as those of experts."""
    linear = {id(part.weight) for part in linears_in(block).values()}
    return [name for name, weight in block.named_parameters() if weight.dim() > 1 and id(weight) not in linear]


def with_linears(block: nn.Module, layers: Mapping[str, nn.Linear]) -> nn.Module:
    """Return a block with other linear layers, given by name; it shares all other weights with the one given."""
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())}
    changed = copy.deepcopy(block, shared)
    for name, layer in layers.items():
        owner, _, attribute = name.rpartition(".")
        setattr(changed.get_submodule(owner), attribute, layer)
    return changed
