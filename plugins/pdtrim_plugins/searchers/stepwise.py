"""Searches that remove one element at a time, each time the one that the measurements say costs least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import ClassVar

from pydantic import Field

from pdtrim_core.api import Element, PdtrimError, Probe, Removal, Requests, Score, Searcher, SearchSpace, best_of, measure

KEPT = 4
"""Removals of the last size that are measured whole at least, so that fresh items have something to decide between."""


class Sequential(Searcher):
    """Removes one block after the other, each time the one that costs least on top of those already gone."""

    name = "sequential"
    parts: ClassVar[bool] = True
    cites = "SLEB (arXiv:2402.09025)"

    candidates: int | None = Field(
        None,
        gt=0,
        description="elements that are tried after the first step, the best ones alone (default: all, as SLEB; and of parts)",
    )
    swaps: int = Field(
        0, ge=0, description="rounds in which one element may be swapped for another, once all are chosen (SLEB: 0)"
    )
    protect_first: int = Field(1, ge=0, description="number of first blocks that are never removed")
    protect_last: int = Field(1, ge=0, description="number of last blocks that are never removed")

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Measure every removal with one more element, keep the best (ties: the lower block), and so on; then swap.

        Of parts of blocks, the best is the one that costs least for the bytes that go with it.
        """
        del rng
        elements = _unprotected(space, self.protect_first, self.protect_last)
        _check_enough(self.name, space, elements)
        grow = _grow_by_rate(space, elements) if space.parts else _grow(space, elements, 1, candidates=self.candidates)
        best = yield from grow
        for _ in range(self.swaps):
            before, best = best, (yield from _swap(space, elements, best))
            if best == before:
                break

    def steps(self, space: SearchSpace) -> int | None:
        """Return the sum, over the steps, of the elements that are left; then all swaps that there can be. Unknown for parts."""
        if space.parts:
            return None
        count = len(_unprotected(space, self.protect_first, self.protect_last))
        left = count if self.candidates is None else min(count, max(self.candidates, space.count))
        swaps = self.swaps * space.count * max(0, count - space.count)
        fewer = count - left if space.count else 0
        return _step_count(left, space.count, 1) + fewer + swaps


class Beam(Searcher):
    """Removes one block after the other, but follows the best few removals of each size, not the best alone.

    Up to two blocks, a wider beam is never worse than a narrower one. From three on it can be: what it follows besides
    may crowd out what would have become the best.
    """

    name = "beam"
    cites = "SLEB (arXiv:2402.09025), widened"

    width: int = Field(3, gt=0, description="number of removals of each size to go on from (1 is what sequential does)")
    protect_first: int = Field(1, ge=0, description="number of first blocks that are never removed")
    protect_last: int = Field(1, ge=0, description="number of last blocks that are never removed")

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Measure every removal with one more element than one that is followed; follow the best of them."""
        del rng
        elements = _unprotected(space, self.protect_first, self.protect_last)
        _check_enough(self.name, space, elements)
        yield from _grow(space, elements, self.width)

    def steps(self, space: SearchSpace) -> int | None:
        """Return the most that can be measured; removals that two others grow into are measured once."""
        return _step_count(len(_unprotected(space, self.protect_first, self.protect_last)), space.count, self.width)


def _grow(space: SearchSpace, elements: Sequence[Element], width: int, *, candidates: int | None = None) -> Requests[Removal]:
    """Ask for all removals with one element more than the `width` best of the size before; return the best of the size wanted.

    Those on the way are probes; those of the last size are what the search is for, and a few more of them are kept. After the
    first step the elements are those `candidates` that cost least alone.
    """
    best = [Removal()]
    if space.count == 0:
        yield from measure(space.plan_of(Removal()))
    for size in range(1, space.count + 1):
        grown = list(dict.fromkeys(removal.with_(element) for removal in best for element in elements if element not in removal))
        plans = [space.plan_of(removal) for removal in grown]
        last, shortlist = size == space.count, max(space.count, candidates or 0) if size == 1 and candidates else 0
        keep = min(len(plans), max(width, shortlist, KEPT if last else 0))
        scores = yield from best_of(plans if last else [Probe(plan) for plan in plans], keep)
        # Sorting is stable: ties stay in the order of the removal they grew from, then of the blocks.
        measured = [(removal, score) for removal, score in zip(grown, scores, strict=True) if score is not None]
        ranked = [removal for removal, _ in sorted(measured, key=lambda pair: pair[1], reverse=True)]
        best = ranked[:width]
        if shortlist:
            elements = [element for element in elements if Removal([element]) in ranked[:shortlist]]
    return best[0]


def _grow_by_rate(space: SearchSpace, elements: Sequence[Element]) -> Requests[Removal]:
    """Ask for all removals with one part more; go on from the one that loses least of the score for its size, to full size."""
    current, score = Removal(), (yield from measure(Probe(space.plan_of(Removal()))))
    ends: dict[Removal, Score] = {}
    while not space.is_full(current):
        grown = [larger for element in elements if element not in current and space.fits(larger := current.with_(element))]
        if not grown:
            raise PdtrimError(_stuck(space, current))
        scores = yield from measure([Probe(space.plan_of(removal)) for removal in grown])
        before, size = score, space.size(current)
        rates = [(before - reached) / (space.size(removal) - size) for removal, reached in zip(grown, scores, strict=True)]
        best = min(range(len(grown)), key=lambda number: (rates[number], number))
        ends = {removal: reached for removal, reached in zip(grown, scores, strict=True) if space.is_full(removal)}
        current, score = grown[best], scores[best]
    # The best of the last step, which are measured already, are what fresh items decide between.
    others = sorted(ends, key=ends.__getitem__, reverse=True)[:KEPT]
    yield from measure([space.plan_of(removal) for removal in dict.fromkeys((current, *others))])
    return current


def _stuck(space: SearchSpace, current: Removal) -> str:
    return (
        f"searcher 'sequential' has removed as many bytes as {space.size(current):.2f} blocks have, and {space.count} are asked "
        "for, but no part that is left fits: lower searcher.protect_first or searcher.protect_last, or ask for another number"
    )


def _swap(space: SearchSpace, elements: list[Element], current: Removal) -> Requests[Removal]:
    """Ask for all removals with another element in place of one; return the best, which is `current` where none is better."""
    inside = [element for element in current if element in elements]
    outside = [element for element in elements if element not in current]
    swapped = (current.without(leaving).with_(entering) for leaving in inside for entering in outside)
    removals = [current, *(removal for removal in swapped if space.is_full(removal))]
    scores = yield from best_of([space.plan_of(removal) for removal in removals], min(KEPT, len(removals)))
    measured = [(score, -number) for number, score in enumerate(scores) if score is not None]
    return removals[-max(measured)[1]]


def _unprotected(space: SearchSpace, protect_first: int, protect_last: int) -> list[Element]:
    """Return the elements that touch no protected block, in the order of their blocks.

    SLEB counts its barriers over the blocks that are still there; since those behind a barrier never go, it is the same.
    """
    free = range(protect_first, space.block_count - protect_last)
    return [element for element in space.elements if all(block in free for block in element.blocks)]


def _check_enough(name: str, space: SearchSpace, elements: list[Element]) -> None:
    if not space.parts and len(elements) < space.count:
        raise PdtrimError(
            f"searcher '{name}' was asked to remove {space.count} of the blocks, but only {len(elements)} of "
            f"{len(space.elements)} elements are not protected: lower searcher.protect_first or "
            "searcher.protect_last, or ask for fewer blocks"
        )


def _step_count(element_count: int, count: int, width: int) -> int:
    """Return the removals measured when `width` of each size are followed and none is met twice, as far as there are any."""
    if count == 0:
        return 1
    followed = [min(width, math.comb(element_count, size)) for size in range(count)]
    return sum(min(beams * (element_count - size), math.comb(element_count, size + 1)) for size, beams in enumerate(followed))
