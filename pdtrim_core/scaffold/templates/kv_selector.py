"""A selector of K/V: says which tokens of a prompt the blocks of decode read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import Edges, KvSelector, Selection, SelectionFacts, hookimpl

if TYPE_CHECKING:
    # It loads torch, which listings do without.
    from pdtrim_core.api import SelectionContext


class Example(KvSelector):
    """Lets each block of decode read as little of a prompt's ends as holds most of its attention."""

    name = "example"
    needs_attention = True

    shares: tuple[float, ...] = Field((0.05, 0.1, 0.2), min_length=1, description="shares of a prompt at each end, least first")
    most: float = Field(0.8, gt=0, le=1, description="attention that has to be on what is read, in the head that has least of it")

    def problems(self, facts: SelectionFacts) -> list[str]:
        """Return why such prompts tell nothing; it is asked before anything is measured."""
        return [] if max(facts.prompt_tokens, default=0) > 32 else [f"the prompts of {facts.calibration} are read whole"]

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        """Return the smallest ends that will do for each block; a block for which none do reads whole prompts."""
        candidates = [Edges(block, share, share) for block in context.blocks for share in self.shares]
        found: dict[int, Selection] = {}
        # The pair goes through the texts once a call: all candidates are asked for together.
        for candidate, mass in zip(candidates, context.masses(candidates), strict=True):
            # [texts, heads]: the mean over texts, then the head that looks elsewhere the most.
            if candidate.block not in found and float(mass.mean(dim=0).min()) >= self.most:
                found[candidate.block] = candidate
        return list(found.values())


@hookimpl
def pdtrim_kv_selectors() -> Iterable[type[KvSelector]]:
    """Yield the selectors of this package."""
    yield Example
