"""Which experts of a mixture go: those of the lowest scores that their routers can do without, up to a budget of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from pdtrim_core.api import PdtrimError, Removal, Shrink

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import ModelSizes, PruneContext, PruneFacts, RoutedTokens

Width = Annotated[
    Literal["uniform", "per-block"],
    Field(
        description="uniform: the same number of experts from each block (REAP), so that the result is an ordinary checkpoint; "
        "per-block: one ranking over all blocks, which then differ"
    ),
]
NARROWS: frozenset[Literal["experts"]] = frozenset({"experts"})


class _Round(NamedTuple):
    """Experts of a block that go together: one, or one of each group where the router chooses among groups."""

    block: int
    experts: tuple[int, ...]
    score: float
    parameters: int


Steps = list[list[_Round]]
"""What goes together, step by step."""


def problems(name: str, facts: PruneFacts, width: str) -> list[str]:
    """Return why so many parameters cannot go in experts, whatever their scores are."""
    if not facts.parameters:
        return []
    found = _rounds(facts.sizes, {})
    if not found:
        return [f"{name}: no block of {facts.model} ({facts.family}) has experts among which a router chooses"]
    try:
        _taken(_steps(found, width), facts.parameters)
    except PdtrimError as error:
        return [f"{name}: {error}"]
    return []


def scores_of(
    context: PruneContext, score_of: Callable[[RoutedTokens, int, Tensor], Tensor], *, mean: bool
) -> dict[int, list[float]]:
    """Return a score for each expert of each block that has some: the sum over the tokens that decode sends there, or their mean.

    See `scores_from`, of which this is the one for decode.
    """
    seen = scores_from(context.look_at_routers, context.model.sizes, score_of, mean=mean)
    if seen.unchosen:
        what = f"{seen.unchosen} of {seen.count} experts were sent no token of decode"
        context.note(f"{what}, and are the first to go: more samples tell more")
    return seen.scores


class Seen(NamedTuple):
    """The scores of the experts of each block, how many experts there are, and how many of them were sent no token."""

    scores: dict[int, list[float]]
    count: int
    unchosen: int


def scores_from(
    look_at: Callable[[Callable[[RoutedTokens], None]], None],
    of_model: ModelSizes,
    score_of: Callable[[RoutedTokens, int, Tensor], Tensor],
    *,
    mean: bool,
) -> Seen:
    """Return the scores of experts over the tokens that `look_at` shows: their sum for each expert, or their mean.

    `score_of` is given the tokens of a batch, an expert, and the places `[M, 2]` at which it was chosen: the token, and which of
    its experts it is. It returns one number for each, `[M]`. An expert that was never chosen has 0.
    """
    import torch  # noqa: PLC0415 - listings must not import torch

    sums: dict[int, Tensor] = {}
    counts: dict[int, Tensor] = {}
    sizes = of_model.blocks

    def look(seen: RoutedTokens) -> None:
        count = sizes[seen.block].units["experts"][0]
        of_block = sums.setdefault(seen.block, torch.zeros(count, dtype=torch.float64))
        times = counts.setdefault(seen.block, torch.zeros(count, dtype=torch.float64))
        for expert in sorted(set(seen.chosen_NK.flatten().tolist())):
            at_M2 = (seen.chosen_NK == expert).nonzero()
            of_block[expert] += float(score_of(seen, expert, at_M2).double().sum())
            times[expert] += len(at_M2)

    look_at(look)
    found = {block: (of_block / (counts[block].clamp(min=1) if mean else 1)).tolist() for block, of_block in sums.items()}
    for block, of_block in found.items():
        if not all(map(math.isfinite, of_block)):
            raise PdtrimError(
                f"what the experts of block {block} make is not finite; if the weights are in float16, which overflows early, "
                'say model.dtype = "bfloat16" or "float32"'
            )
    return Seen(found, sum(map(len, counts.values())), sum(int((of_block == 0).sum()) for of_block in counts.values()))


def lowest(sizes: ModelSizes, scores: Mapping[int, Sequence[float]], wanted: int, width: str) -> Removal:
    """Return the shrinks that remove the experts of the lowest scores, nearest to so many parameters."""
    steps = _steps(_rounds(sizes, scores), width)
    gone: dict[int, list[int]] = {}
    for step in steps[: _taken(steps, wanted)]:
        for one in step:
            gone.setdefault(one.block, []).extend(one.experts)
    return Removal(Shrink(block, "experts", tuple(sorted(experts))) for block, experts in gone.items())


def _rounds(sizes: ModelSizes, scores: Mapping[int, Sequence[float]]) -> list[list[_Round]]:
    """Return the rounds in which the experts of each block may go, without those that its router needs."""
    found = []
    for block, of_block in enumerate(sizes.blocks):
        if of_block.routing is None:
            continue
        count, parameters = of_block.units["experts"]
        rated = scores.get(block, (0.0,) * count)
        # Ties go to the lower expert.
        orders = [sorted(group, key=lambda expert: (rated[expert], expert)) for group in of_block.routing.groups_of(count)]
        there = len(orders[0]) - of_block.routing.least
        together = [tuple(order[number] for order in orders) for number in range(there)]
        found.append([_Round(block, each, sum(rated[e] for e in each), parameters * len(each)) for each in together])
    return found


def _steps(found: Sequence[Sequence[_Round]], width: str) -> Steps:
    if width == "uniform":
        return [list(step) for step in zip(*found, strict=False)]
    return [[one] for one in sorted((one for rounds in found for one in rounds), key=lambda one: (one.score, one.block))]


def _taken(steps: Steps, wanted: int) -> int:
    """Return how many steps come nearest to so many parameters. Raises `PdtrimError` where all are too few, or one too many."""
    costs = [0, *accumulate(sum(one.parameters for one in step) for step in steps)]
    if not steps or wanted > costs[-1] + sum(one.parameters for one in steps[-1]) / 2:
        raise PdtrimError(
            f"at most {costs[-1]:,} parameters can go in experts, as each router needs those that it sends a token to, and the "
            f"budget is {wanted:,}: prune less"
        )
    taken = min(range(len(costs)), key=lambda number: (abs(costs[number] - wanted), number))
    if not taken:
        raise PdtrimError(
            f"the smallest step removes {costs[1]:,} parameters, and the budget is {wanted:,}: prune more, or say "
            'width = "per-block", whose steps are smaller'
        )
    return taken
