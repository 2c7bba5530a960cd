"""A search whose time is over: the plan that it gives all the same, completed by the block scores where none was of full size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.readings import Score
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.elements import Element, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.wording import counted

IsOver = Callable[[], bool]
"""Tells whether the time of a search is over."""


class TimeIsOver(Exception):  # noqa: N818 - nothing is wrong
    """The time of a search is over, and there is something left to measure."""


class OutOfTime(Exception):  # noqa: N818 - nothing is wrong
    """A searcher was stopped, since its time was over.

    `best` is the best plan of full size that was measured whole, `probes` are the probes that were, `pending` are the plans that
    it had requested last, each with whether it may be the result, `asked` all elements that it ever requested.
    """

    def __init__(
        self,
        best: Plan | None,
        probes: Mapping[Plan, Score],
        pending: Sequence[tuple[Plan, bool]],
        asked: Collection[Element],
    ) -> None:
        super().__init__("the time of the search is over")
        self.best = best
        self.probes = dict(probes)
        self.pending = tuple(pending)
        self.asked = frozenset(asked)


def completed(stopped: OutOfTime, space: SearchSpace, ceiling: float | None = None) -> Plan:
    """Return the plan of full size that a search was about to find, for one that was stopped before any was measured whole.

    That is the safest of those that it had just requested. Where it had requested probes, it is the best of the largest probes
    that were measured, filled up with the safest elements: first with such as the search requests, which are not protected.
    Raises `PdtrimError` where no elements fill it up, or where its prefill costs more than the searcher's `ceiling`.
    """
    if candidates := [plan for plan, may_win in stopped.pending if may_win]:
        return max(candidates, key=lambda plan: sum(_safety(element, space) for element in plan.decode))
    whole = {plan.decode: score for plan, score in stopped.probes.items() if space.fits(plan.decode)}
    begun = max(whole, key=lambda removal: (space.size(removal), whole[removal]), default=Removal())
    safest = sorted(space.elements, key=lambda element: (element not in stopped.asked, -_safety(element, space)))
    removal = space.filled(begun, safest)
    if not space.is_full(removal):
        raise PdtrimError(_too_early(space.count, "none can be made of what it had"))
    plan = space.plan_of(removal)
    if ceiling is not None and space.cost(plan, "prefill") > ceiling:
        raise PdtrimError(_too_early(space.count, f"what it had, filled up, has a prefill above the searcher's {ceiling:g}"))
    return plan


def _too_early(count: int, why: str) -> str:
    return (
        f"the time of the search was over before it had measured a plan that removes {counted(count, 'block')}, and {why}: "
        "give it more with search.minutes"
    )


def _safety(element: Element, space: SearchSpace) -> float:
    """Return the mean block score of the blocks of an element."""
    return sum(space.scores.block[block] for block in element.blocks) / len(element.blocks)
