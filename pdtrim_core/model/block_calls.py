"""How a block is called: the hidden states, and what else the model's own forward gives it.

Shape suffixes: B batch, T token, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError


@dataclass(frozen=True)
class Call:
    """What a block is given beside the hidden states, as the model's own forward gives it."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_keyword: bool

    def to(self, dtype: torch.dtype) -> Call:
        """Return the same call with every floating tensor of it in another number format; masks of truth values stay."""
        kwargs = {name: _in_format(value, dtype) for name, value in self.kwargs.items()}
        return Call(_in_format(self.args, dtype), kwargs, self.by_keyword)


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


def _in_format(value: Any, dtype: torch.dtype) -> Any:
    """Return a value of a call with its floating tensors in a number format, those within tuples and lists too."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_in_format(part, dtype) for part in value)
    return value
