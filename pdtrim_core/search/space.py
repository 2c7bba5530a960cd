"""The search space: the two sets of elements, the first removal, and its neighbours (PDTrim, Eq. 2 and 4 to 9)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.elements import PARTS, Drop, DropPart, Element, Merge, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.wording import counted

DEFAULT_THRESHOLD = 0.95
DEFAULT_QUANTILE = 0.9


@dataclass(frozen=True)
class TwoSets:
    """The pruning set and the distillation set.

    `initial` are the blocks of P_initial by falling score, `pairs` the merges of D by falling pair score, `drops` the
    blocks of P_final by falling score. Every block is in exactly one element of `drops` and `pairs`.
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
                f"{counted(count, 'block')} to remove, but the two sets hold only {counted(len(self.drops), 'drop')} and "
                f"{counted(len(self.pairs), 'merge')}: raise prune.merge_threshold or ask for fewer blocks"
            )
        return Removal(elements)


def two_sets(
    scores: Scores, count: int, merge_threshold: float = DEFAULT_THRESHOLD, *, never: Collection[tuple[int, ...]] = ()
) -> TwoSets:
    """Return the two sets for `count` removed blocks and a threshold d_T on pair scores (PDTrim, Eq. 2, 4 and 5).

    Overlapping pairs are taken by falling pair score. Ties go to the lower block. Pairs in `never` are not merged.
    """
    order = scores.ranking()
    initial = tuple(order[: math.ceil(count / 2)])
    taken = set(initial)
    pairs = []
    for first in sorted(range(len(scores.pair)), key=lambda i: (-scores.pair[i], i)):
        if (first, first + 1) not in never and scores.pair[first] >= merge_threshold and not taken & {first, first + 1}:
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


def search_space(
    scores: Scores,
    count: int,
    sets: TwoSets,
    costs: CostModel | None = None,
    *,
    plan_of: Callable[[Removal], Plan] = Plan.unified,
) -> SearchSpace:
    """Build the space of the paper's search from the two sets; without `costs` it tells none.

    `plan_of` gives the plan by which a removal from decode is measured. Raises `PdtrimError` when so many blocks cannot go.
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
    first, costs = sets.first_removal(count), costs or CostModel(len(scores.block))
    return SearchSpace(count, elements, weights, first, scores, costs, plan_of)


def part_space(scores: Scores, count: int, costs: CostModel, *, plan_of: Callable[[Removal], Plan] = Plan.unified) -> SearchSpace:
    """Build the space of a search over the attention and the MLP of every block apart, with the bytes of `count` blocks to go.

    A part has the score of its block. The first removal drops the safest blocks, part by part, as far as they fit. Raises
    `PdtrimError` where no parts together have so many bytes.
    """
    elements = tuple(DropPart(block, part) for block in range(len(scores.block)) for part in PARTS)
    scale = scores.block if scores.similarity else _ranks(scores)
    weights = tuple(max(0.0, scale[element.block]) for element in elements)
    space = SearchSpace(count, elements, weights, Removal(), scores, costs, plan_of, parts=True)
    first = space.filled(Removal(), (DropPart(block, part) for block in scores.ranking() for part in reversed(PARTS)))
    if not space.is_full(first):
        raise PdtrimError(
            f"prune.parts: no parts of blocks together have the bytes of {count} of {len(scores.block)} blocks: ask for fewer"
        )
    return replace(space, first=first)


def without_merges(sets: TwoSets, scores: Scores) -> TwoSets:
    """Return the sets in which every pair is two single blocks again."""
    return replace(sets, pairs=(), drops=tuple(scores.ranking()))


def _ranks(scores: Scores) -> tuple[float, ...]:
    """Return 1/N for the least safe block to 1 for the safest: the scale of scores that have none of their own."""
    order = scores.ranking()
    return tuple((len(order) - order.index(block)) / len(order) for block in range(len(order)))
