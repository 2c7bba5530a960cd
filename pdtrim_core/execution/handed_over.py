"""What prefill hands over to decode: K/V, and which of them layers of decode are not given.

Shape suffixes: B batch, N tokens of prompts that prefill reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class HandedOver:
    """What decode starts from: a cache of the K/V that it was handed, and which of them each of its layers was not.

    Where a layer was not handed the K/V of a token, its cache has zeros: positions and masks stay those of the whole prompt.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.unread: dict[int, Tensor] = {}
        """`[B, N]` for layers of decode by number, True at the tokens whose K/V they do not have."""

    def pad_to(self, width: int) -> None:
        """Have K/V of so many tokens: those that are more are padding, in front of all others."""
        for layer in self.cache.layers:
            more = width - layer.keys.shape[-2]
            layer.keys, layer.values = (functional.pad(each, (0, 0, more, 0)) for each in (layer.keys, layer.values))
        self.unread = {
            number: functional.pad(unread_BN, (width - unread_BN.shape[1], 0)) for number, unread_BN in self.unread.items()
        }

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some of the prompts."""
        self.cache.batch_select_indices(rows)
        self.unread = {number: unread_BN[rows] for number, unread_BN in self.unread.items()}


def joined(handed: Sequence[HandedOver], cache: Any) -> HandedOver:
    """Return what one decode starts from that was handed prompts by several prefills, one behind another; `cache` is empty."""
    if len(handed) == 1:
        return handed[0]
    whole = HandedOver(cache)
    for number, layers in enumerate(zip(*(one.cache.layers for one in handed), strict=True)):
        cache.update(torch.cat([layer.keys for layer in layers]), torch.cat([layer.values for layer in layers]), number)
    for number in handed[0].unread if handed else ():
        whole.unread[number] = torch.cat([one.unread[number] for one in handed])
    return whole
