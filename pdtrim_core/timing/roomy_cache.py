"""A K/V cache with room for what comes, as engines have one: a new token is written in place and nothing is copied.

transformers' own growing cache copies the K/V of the whole context for every token, which would be most of what is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

FILL = 0.01
"""What the context is filled with: a time does not depend on it, but pages that were never written cost nothing to read."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """The K/V of one block, in tensors with more room than is used."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new K/V behind the others; return all of them."""
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return how many tokens there are K/V of."""
        return self.length


def roomy_cache(like: Sequence[tuple[Tensor, Tensor]], *, batch: int, room: int) -> Any:
    """Return a cache for so many sequences of so many tokens; `like` has K and V of each layer, with its heads and widths."""

    def filled(part: Tensor) -> Tensor:
        return torch.full((batch, part.shape[1], room, part.shape[3]), FILL, dtype=part.dtype, device=part.device)

    cache = DynamicCache()
    cache.layers = [RoomyLayer(filled(keys), filled(values)) for keys, values in like]
    return cache


def set_length(cache: Any, length: int) -> None:
    """Let a cache have K/V of so many tokens."""
    for layer in cache.layers:
        layer.length = length
