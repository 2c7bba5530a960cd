"""The search that measures everything, over few enough elements."""

from __future__ import annotations

import math
from itertools import combinations, islice
from random import Random

from pydantic import Field

from pdtrim_core.api import Drop, Element, Merge, PdtrimError, Plan, Removal, Requests, Searcher, SearchSpace, best_of

SIDE_BY_SIDE = 64
"""Plans asked for in one list: enough to be measured side by side, few enough that a bar moves."""

KEPT = 4
"""The best so far that are sure to be measured whole, so that fresh items have something to decide between."""


class Exhaustive(Searcher):
    """All combinations of the merges and the best drops: the best there is among them, at a price."""

    name = "exhaustive"
    cites = "PDTrim, Appendix H (arXiv:2509.04467)"

    drops: int = Field(5, ge=0, description="number of best drops by score to combine with all merges (the paper: 5)")
    limit: int = Field(2000, gt=0, description="number of combinations above which the search is refused")

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Ask for every combination, in the order of the blocks. Raises `PdtrimError` when there are too many."""
        del rng
        elements = self._elements(space)
        combination_count = math.comb(len(elements), space.count)
        if combination_count > self.limit:
            raise PdtrimError(
                f"searcher 'exhaustive' would measure {combination_count} removals ({space.count} of {len(elements)} "
                f"elements), above its limit of {self.limit}: lower searcher.drops, raise searcher.limit, or take a "
                "searcher that measures fewer, such as annealing"
            )
        rest = combinations(elements, space.count)
        best: list[Plan] = []
        while plans := [space.plan_of(Removal(chosen)) for chosen in islice(rest, SIDE_BY_SIDE)]:
            # The best so far compete again, which costs nothing, so that others are given up the sooner.
            plans = list(dict.fromkeys((*best, *plans)))
            scores = yield from best_of(plans, KEPT)
            ranked = sorted(((score, -number) for number, score in enumerate(scores) if score is not None), reverse=True)
            best = [plans[-number] for _, number in ranked[:KEPT]]

    def steps(self, space: SearchSpace) -> int | None:
        """Return the number of combinations."""
        return math.comb(len(self._elements(space)), space.count)

    def _elements(self, space: SearchSpace) -> list[Element]:
        """Return the merges and the best drops by score, in the order of their blocks.

        Where they are fewer than the blocks to go, as many more drops are taken as are needed. The paper does not say what
        to do then: its experiment removes five blocks, so that five drops are enough.
        """
        merges = [element for element in space.elements if isinstance(element, Merge)]
        drops = [Drop(block) for block in space.scores.ranking() if Drop(block) in space.elements]
        chosen = {*merges, *drops[: max(self.drops, space.count - len(merges))]}
        return [element for element in space.elements if element in chosen]
