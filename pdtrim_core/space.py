"""The search space: the two sets of elements, the first removal, and its neighbours (PDTrim, Eq. 2 and 4 to 9)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random

from pdtrim_core.elements import Drop, Element, Merge, Removal, Stage
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan import Plan
from pdtrim_core.scores import Scores
from pdtrim_core.sizes import ModelSizes

DEFAULT_THRESHOLD = 0.95
DEFAULT_QUANTILE = 0.9


@dataclass(frozen=True)
class TwoSets:
    """The pruning set and the distillation set.

    `initial` are the blocks of P_initial by falling score, `pairs` the merges of D by falling pair score, `drops` the
    blocks of P_final by falling score. Every block stands in exactly one element of `drops` and `pairs`.
    """

    initial: tuple[int, ...]
    pairs: tuple[Merge, ...]
    drops: tuple[int, ...]

    def first_removal(self, count: int) -> Removal:
        """Return the removal that a search starts from (PDTrim, Eq. 6 and 7): P_initial and the best pairs of D.

        Where D is too small, the best remaining blocks of P_final fill it up.
        """
        elements: list[Element] = [Drop(block) for block in self.initial]
        elements += self.pairs[: count - len(elements)]
        rest = [Drop(block) for block in self.drops if block not in self.initial]
        elements += rest[: count - len(elements)]
        if len(elements) < count:
            raise PdtrimError(
                f"{count} blocks are to go, but the two sets hold only {len(self.drops)} drops and {len(self.pairs)} "
                "merges: raise merge_above or ask for fewer blocks"
            )
        return Removal(elements)


def two_sets(
    scores: Scores, count: int, merge_above: float = DEFAULT_THRESHOLD, *, never: Collection[tuple[int, ...]] = ()
) -> TwoSets:
    """Return the two sets for `count` removed blocks and a threshold d_T on pair scores (PDTrim, Eq. 2, 4 and 5).

    Overlapping pairs are taken by falling pair score. Ties go to the lower block. Pairs in `never` are not merged.
    """
    order = scores.ranking()
    initial = tuple(order[: math.ceil(count / 2)])
    taken = set(initial)
    pairs = []
    for first in sorted(range(len(scores.pair)), key=lambda i: (-scores.pair[i], i)):
        if (first, first + 1) not in never and scores.pair[first] >= merge_above and not taken & {first, first + 1}:
            taken |= {first, first + 1}
            second = first + 1
            start = first if scores.block[first] <= scores.block[second] else second
            pairs.append(Merge(keep=start, drop=first + second - start))
    merged = {block for pair in pairs for block in pair.blocks}
    return TwoSets(initial, tuple(pairs), tuple(block for block in order if block not in merged))


def quantile_threshold(scores: Scores, quantile: float) -> float:
    """Return the pair score that a share `quantile` of all pairs lies below (no pairs: infinity)."""
    if not scores.pair:
        return math.inf
    rising = sorted(scores.pair)
    return rising[min(len(rising) - 1, math.ceil(quantile * len(rising)))]


@dataclass(frozen=True)
class SearchSpace:
    """What a searcher may choose from: elements with weights, the number to remove, and where to start.

    `elements` partition the blocks, so that no choice of them overlaps. `weights` (one an element) are the chances of
    PDTrim, Eq. 8 and 9. Costs are shares of the dense model's; with `free_tail` prefill computes nothing behind the last K/V
    that decode reads, and what it leaves out there costs nothing.
    """

    count: int
    elements: tuple[Element, ...]
    weights: tuple[float, ...]
    first: Removal
    scores: Scores
    sizes: ModelSizes | None = field(default=None, repr=False)
    free_tail: bool = False

    @property
    def block_count(self) -> int:
        """The number of blocks of the dense model."""
        return len(self.scores.block)

    @cached_property
    def _weight_of(self) -> dict[Element, float]:
        return dict(zip(self.elements, self.weights, strict=True))

    def neighbour(self, removal: Removal, rng: Random) -> Removal:
        """Return the removal with one random element swapped for another, drawn by weight (PDTrim, Eq. 8 and 9).

        Returns the same removal where there is nothing to swap.
        """
        outside = [element for element in self.elements if element not in removal]
        if not outside or not len(removal):
            return removal
        leaving = rng.choice(removal.elements)
        weights = [self._weight_of[element] for element in outside]
        entering = rng.choices(outside, weights if sum(weights) > 0 else None)[0]
        return removal.without(leaving).with_(entering)

    def cost(self, plan: Plan, stage: Stage) -> float:
        """Return a stage's cost as a share of the dense model's: FLOPs of prefill, weight bytes a token of decode."""
        if self.sizes is None:
            raise PdtrimError("this search space was made without the model's sizes, so it cannot tell a cost")
        return self.sizes.cost(plan.free_tail(self.block_count) if self.free_tail else plan, stage)

    def problems(self, plan: Plan) -> list[str]:
        """Return why a plan may not be proposed by a search over this space."""
        removed = plan.decode.blocks_removed
        if removed != self.count:
            return [f"its decode removes {removed} blocks where {self.count} are asked"]
        return []


def search_space(
    scores: Scores, count: int, sets: TwoSets, sizes: ModelSizes | None = None, *, free_tail: bool = False
) -> SearchSpace:
    """Build the space of the paper's search from the two sets.

    Raises `PdtrimError` when so many blocks cannot go.
    """
    if not 0 <= count < len(scores.block):
        raise PdtrimError(
            f"cannot remove {count} of {len(scores.block)} blocks: decode must keep at least one "
            f"(prune.blocks can be 0 to {len(scores.block) - 1})"
        )
    drops = [Drop(block) for block in sorted(sets.drops)]
    elements: tuple[Element, ...] = tuple(sorted((*drops, *sets.pairs), key=lambda e: e.blocks))
    scale = scores.block if scores.similarity else _ranks(scores)
    weights = tuple(max(0.0, sum(scale[b] for b in e.blocks) / len(e.blocks)) for e in elements)
    return SearchSpace(count, elements, weights, sets.first_removal(count), scores, sizes, free_tail)


def without_merges(sets: TwoSets, scores: Scores) -> TwoSets:
    """Return the sets in which every pair is two single blocks again."""
    return replace(sets, pairs=(), drops=tuple(scores.ranking()))


def _ranks(scores: Scores) -> tuple[float, ...]:
    """Return 1/N for the least safe block to 1 for the safest: the scale of scores that have none of their own."""
    order = scores.ranking()
    return tuple((len(order) - order.index(block)) / len(order) for block in range(len(order)))
