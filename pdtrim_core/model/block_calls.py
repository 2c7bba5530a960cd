"""How a block is called: the hidden states, and what else the model's own forward gives it.

Shape suffixes: B batch, T token, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError

Moved = dict[tuple[int, torch.device], tuple[Tensor, Tensor]]
"""Tensors on other devices, with what they are there, by their numbers in this process and the device."""


@dataclass(frozen=True)
class Call:
    """What a block is given beside the hidden states, as the model's own forward gives it."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_keyword: bool

    def on(self, device: torch.device, moved: Moved) -> Call:
        """Return the same call with its tensors on a device; `moved` remembers which were moved, for blocks that share them."""

        def there(tensor: Tensor) -> Tensor:
            if tensor.device == device:
                return tensor
            # With the tensor itself, since the number of one that is gone may become another one's.
            if (id(tensor), device) not in moved:
                moved[id(tensor), device] = tensor, tensor.to(device)
            return moved[id(tensor), device][1]

        kwargs = {name: _changed(value, there) for name, value in self.kwargs.items()}
        return Call(_changed(self.args, there), kwargs, self.by_keyword)

    def to(self, dtype: torch.dtype) -> Call:
        """Return the same call with every floating tensor of it in another number format; masks of truth values stay."""

        def in_format(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        kwargs = {name: _changed(value, in_format) for name, value in self.kwargs.items()}
        return Call(_changed(self.args, in_format), kwargs, self.by_keyword)


def run_block(
    block: nn.Module, hidden_BTD: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, by_keyword: bool
) -> Tensor:
    """Return the hidden states that a block makes of others, called the way the model calls it."""
    if by_keyword:
        return hidden_of(block(hidden_states=hidden_BTD, **kwargs))
    return hidden_of(block(hidden_BTD, *args, **kwargs))


def split_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Call]:
    """Return the hidden states of a block call and the rest of it. Refuses calls that carry a cache."""
    rest = dict(kwargs)
    by_keyword = not args
    hidden = rest.pop("hidden_states") if by_keyword else args[0]
    for value in (*args[1:], *rest.values()):
        if isinstance(value, dict) or hasattr(value, "get_seq_length"):
            raise PdtrimError("blocks of this model share a cache or a dictionary while they run, so they cannot run one by one")
    return hidden, Call(args[1:], rest, by_keyword)


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states of a block's output, which some blocks return in a tuple or a list."""
    tensor: Tensor = output[0] if isinstance(output, tuple | list) else output
    return tensor


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value of a call with its tensors changed, those within tuples and lists too."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_changed(part, change) for part in value)
    return value
