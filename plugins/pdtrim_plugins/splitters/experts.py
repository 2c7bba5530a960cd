"""The splitter of experts: prefill keeps those that prompts go to, beside all that decode keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import ClassVar, Literal

from pydantic import Field

from pdtrim_core.api import CostModel, PdtrimError, Plan, Removal, Requests, Shrink, StageSplitter, measure, note
from pdtrim_plugins.pruners import experts as ex
from pdtrim_plugins.pruners.reap import times_chosen, weighted_norms


class Experts(StageSplitter):
    """Takes from prefill, too, those of decode's removed experts that prompts need least, as many as a loss of score allows.

    Experts are ranked by the tokens that prefill runs, block by block. Equal shares of what each block of decode has lost are
    tried, none and all of it among them, and the largest is taken that loses no more than `loss` against a prefill with all
    experts. So prefill has all experts that decode has, and others. What decode loses beside experts stays in prefill.
    """

    name = "experts"
    cites = "REAP (arXiv:2510.13999)"
    sees_routers: ClassVar[bool] = True

    loss: float = Field(1.0, ge=0, description="points of the score that prefill may lose against one with all experts")
    shares: int = Field(4, ge=1, le=100, description="equal shares in which decode's removed experts may go from prefill")
    by: Literal["reap", "frequency"] = Field(
        "reap", description="what ranks experts: the length of their weighted output (REAP), or how often routers choose them"
    )

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure the plan of each share, and return that of the largest which loses no more than it may."""
        del rng
        lost = [element for element in plan.decode if isinstance(element, Shrink) and element.part == "experts"]
        if not lost:
            yield from note("splitter experts: decode loses no experts, so prefill loses nothing")
            yield from measure(dense := Plan(decode=plan.decode))
            return dense
        rounds = self._rounds(lost, costs)
        trials = [Plan(prefill=_first(rounds, share / self.shares), decode=plan.decode) for share in range(self.shares + 1)]
        trials = list(dict.fromkeys(trials))
        scores = yield from measure(trials)
        # The digits that scores have: 4.1 - 3.1 must be a loss of 1.
        return max(
            (trial for trial, score in zip(trials, scores, strict=True) if round(scores[0] - score, 4) <= self.loss), key=_gone
        )

    def _rounds(self, lost: Sequence[Shrink], costs: CostModel) -> dict[int, list[tuple[int, ...]]]:
        """Return what of each block may go, first what prompts need least: an expert, or one of each group of experts."""
        if costs.look_at_prompts is None or costs.sizes is None:
            raise PdtrimError("the splitter experts was not shown what routers choose")
        score_of = weighted_norms if self.by == "reap" else times_chosen
        scores = ex.scores_from(costs.look_at_prompts, costs.sizes, score_of, mean=self.by == "reap").scores
        return {shrink.block: list(_ordered(shrink, scores, costs)) for shrink in lost}

    def steps(self, plan: Plan) -> int | None:
        """Return the trials."""
        del plan
        return self.shares + 1


def _ordered(shrink: Shrink, scores: Mapping[int, Sequence[float]], costs: CostModel) -> Iterator[tuple[int, ...]]:
    assert costs.sizes is not None
    of_block = costs.sizes.blocks[shrink.block]
    assert of_block.routing is not None
    rated = scores[shrink.block]
    groups = of_block.routing.groups_of(of_block.units["experts"][0])
    ordered = (sorted(set(shrink.units) & set(group), key=lambda expert: (rated[expert], expert)) for group in groups)
    yield from zip(*ordered, strict=True)


def _first(rounds: Mapping[int, Sequence[tuple[int, ...]]], share: float) -> Removal:
    """Return the removal of the first rounds of each block, a share of them."""
    gone = {block: of_block[: round(share * len(of_block))] for block, of_block in rounds.items()}
    return Removal(
        Shrink(block, "experts", tuple(sorted(expert for each in of_block for expert in each)))
        for block, of_block in gone.items()
        if of_block
    )


def _gone(plan: Plan) -> int:
    return sum(len(element.units) for element in plan.prefill if isinstance(element, Shrink))
