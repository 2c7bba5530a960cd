"""Texts of several lengths in one batch: padded on the left, as texts are that go on.

Shape suffixes: B batch, T token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHORTEST_TOGETHER = 0.75
"""Length of the shortest text of those that are read together, as a share of the longest, to which the others are padded."""


def left_padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return texts as ids and mask `[B, T]`, padded on the left, where the mask is 0."""
    width = max(map(len, texts))
    rows = [[0] * (width - len(text)) + list(text) for text in texts]
    seen = [[0] * (width - len(text)) + [1] * len(text) for text in texts]
    return torch.tensor(rows, device=device), torch.tensor(seen, device=device)


def of_about_one_length(lengths: Sequence[int]) -> list[list[int]]:
    """Return the numbers of texts in groups, the longest first, in each of which none is much shorter than the longest."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if not groups or lengths[number] < SHORTEST_TOGETHER * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(number)
    return groups
