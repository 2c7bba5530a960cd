"""Block and pair scores: how safe each removal looks before anything is measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scores:
    """One score a block and one a pair of neighbours; higher is safer to remove.

    `block` has one number for each of L blocks, `pair` one for each of the L - 1 pairs (i, i + 1), or none where a
    scorer cannot say (then nothing is merged). `similarity` tells that the numbers are cosines: only those have a
    scale of their own, so that a search may weigh by them and a threshold may be a value (PDTrim, Eq. 8). `norms`, one more
    than there are blocks, are only for reports: the core puts in the mean lengths of the states that the scorer looked at.
    """

    block: tuple[float, ...]
    pair: tuple[float, ...] = ()
    similarity: bool = False
    norms: tuple[float, ...] = ()

    def problems(self, block_count: int) -> list[str]:
        """Return what is wrong with these scores for a model of so many blocks."""
        found = []
        if len(self.block) != block_count:
            found.append(f"{len(self.block)} block scores for {block_count} blocks")
        if self.pair and len(self.pair) != block_count - 1:
            found.append(f"{len(self.pair)} pair scores for {block_count - 1} pairs")
        bad = [i for i, score in enumerate((*self.block, *self.pair)) if not math.isfinite(score)]
        if bad:
            found.append(f"scores that are not finite, the first at position {bad[0]}")
        return found

    def ranking(self) -> list[int]:
        """Return the blocks from the safest to remove to the least safe; ties go to the lower index."""
        return sorted(range(len(self.block)), key=lambda block: (-self.block[block], block))

    def to_json(self) -> str:
        """Return the text of `scores.json`."""
        data: dict[str, Any] = {"index_base": 0, "block": self.block, "pair": self.pair, "similarity": self.similarity}
        if self.norms:
            data["norms"] = self.norms
        return json.dumps(data, indent=1) + "\n"


def pair_scores(block: Sequence[float], across_two: Sequence[float]) -> tuple[float, ...]:
    """Return d_i of each pair (PDTrim, Eq. 3): the mean of the pair's own score and of its more redundant block's.

    `block[i]` compares the input of block i with its output; `across_two[i]` compares the input of block i with the
    output of block i + 1.
    """
    return tuple((two + max(block[i], block[i + 1])) / 2 for i, two in enumerate(across_two))
