"""Texts of several lengths in one batch."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.execution.padding import SHORTEST_TOGETHER, left_padded, of_about_one_length


def test_texts_end_together_and_the_mask_says_where_they_begin() -> None:
    ids_BT, mask_BT = left_padded([[5, 6, 7], [8]], torch.device("cpu"))
    assert ids_BT[mask_BT.bool()].tolist() == [5, 6, 7, 8]
    assert mask_BT.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([4, 100, 80, 5, 74], [[1, 2], [4], [3, 0]]),
        ([7, 7, 7], [[0, 1, 2]]),
        ([0, 1, 0], [[1], [0, 2]]),
        ([], []),
    ],
)
def test_texts_of_about_one_length_are_together_and_none_is_lost(lengths: list[int], groups: list[list[int]]) -> None:
    found = of_about_one_length(lengths)
    assert found == groups
    for group in found:
        assert min(lengths[number] for number in group) >= SHORTEST_TOGETHER * max(lengths[number] for number in group)
