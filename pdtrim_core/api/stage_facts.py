"""What a searcher or splitter can know before the weights are read: what stages cost, and the least that prefill can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.costs import ModelSizes
from pdtrim_core.plan.elements import Drop, KvOnly, Removal
from pdtrim_core.plan.plan import Plan


@dataclass(frozen=True)
class StageFacts:
    """The costs of a model's stages and the budget, for a ceiling that no plan of a searcher or splitter can meet.

    `blocks` is how many blocks decode loses at most, merged ones counted; None where it loses parts of blocks, whose costs
    are not known before there is a removal.
    """

    costs: CostModel
    blocks: int | None

    @cached_property
    def least_unified_prefill(self) -> float:
        """The least that prefill can cost where it loses what decode loses, as a share of the dense model's; 0 if not known."""
        return min((self.costs.cost(plan, "prefill") for plan in self._cheapest_unified()), default=0.0)

    @cached_property
    def least_prefill(self) -> float:
        """The least that any prefill can cost, one of K/V alone, as a share of the dense model's; 0 if not known."""
        if self.blocks is None:
            return 0.0
        dearest = sorted(
            self._all, key=lambda block: self._sizes.blocks[block].kv_parameters + self._sizes.blocks[block].kv_norms
        )
        lost, kept = dearest[len(dearest) - self.blocks :], dearest[: len(dearest) - self.blocks]
        decode = Removal(map(Drop, lost))
        return self.costs.cost(Plan(prefill=decode.with_(*map(KvOnly, kept)), decode=decode), "prefill")

    def blocks_of_unified(self, share: float) -> float:
        """Return without how many blocks a unified plan costs so much prefill, with blocks of average cost; parts of one count.

        It is below 0 for more than what a dense prefill costs, and above what a unified plan can lose for less than one can cost.
        """
        dense = self.costs.cost(Plan(), "prefill")
        saved = fmean(dense - self._without([block]) for block in self._all)
        return (dense - share) / saved

    def _cheapest_unified(self) -> Iterator[Plan]:
        """Yield the cheapest plan for each last block that decode can have: a truncated prefill does not run that block."""
        if self.blocks is None:
            return
        saved = {block: -self._without([block]) for block in self._all}
        for behind in range(self.blocks + 1):
            last = self.costs.block_count - 1 - behind
            dearest = sorted(range(last), key=saved.__getitem__, reverse=True)[: self.blocks - behind]
            if len(dearest) == self.blocks - behind:
                yield Plan.unified(Removal(map(Drop, (*dearest, *range(last + 1, self.costs.block_count)))))

    def _without(self, blocks: list[int]) -> float:
        return self.costs.cost(Plan.unified(Removal(map(Drop, blocks))), "prefill")

    @property
    def _all(self) -> range:
        return range(self.costs.block_count)

    @property
    def _sizes(self) -> ModelSizes:
        if self.costs.sizes is None:
            raise PdtrimError("these facts were made without the model's sizes, so costs are unknown")
        return self.costs.sizes
