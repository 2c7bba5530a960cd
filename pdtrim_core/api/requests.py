"""What searchers and splitters request of the core, and the results they are sent; what an objective may request of the model.

A search is a generator: it yields requests and is sent results. The functions here each make one request and return its
result, with the type that it has: `score = yield from measure(plan)`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast, overload

from pdtrim_core.data.items import Along, Item
from pdtrim_core.data.readings import Score
from pdtrim_core.plan.plan import Plan

T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """A plan on the way to one that is measured but never the result: it may remove fewer blocks."""

    plan: Plan


@dataclass(frozen=True)
class AtLeast:
    """A plan whose score is wanted only if it reaches a floor (0 to 100); measuring may stop as soon as it cannot.

    A plan that reaches it is accepted. `temperature`, in points of the score, is that of simulated annealing at this step;
    reports show it. `than` is the score that the floor was made from, if it was made from one: where the recipe lets a search
    decide by likelihood (`search.mode`), the plan is compared with it item by item, and given up once it is surely below.
    `otherwise` are the plans that are requested next as long as every one misses its floor, in order and as many as anyone asks
    for: a guess, which costs nothing where it is wrong. Where a measurement reads all weights, some of them are measured in the
    same reading.
    """

    plan: Plan | Probe
    floor: float
    temperature: float | None = None
    than: Score | None = None
    otherwise: Iterable[Plan] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class BestOf:
    """Several plans of which only the best few are wanted; one that is surely none of them has no score.

    Measuring ends for a plan as soon as that is sure: likely enough where the recipe lets a search decide by likelihood
    (`search.mode`), certain elsewhere.
    """

    plans: tuple[Plan, ...] | tuple[Probe, ...]
    keep: int


@dataclass(frozen=True)
class Note:
    """Something that a searcher or splitter has to say to the user; its result is None."""

    text: str


Request = Plan | Probe | list[Plan] | list[Probe] | AtLeast | BestOf | Note
"""What a searcher or splitter yields: a plan or a probe, several that are independent of each other, a plan with a floor, the
best of several, or a note."""
Result = Score | list[Score] | list[Score | None] | None
"""What it is sent in return: a `Score` (a float), a list of them for several (None for one that was given up), or None for a note
and where a floor was missed."""
Requests = Generator[Request, Result, T]
"""A generator that makes requests and returns a T: what `search`, `split` and the functions here are."""


@overload
def measure(plan: Plan | Probe) -> Requests[Score]: ...


@overload
def measure(
    plan: Plan | Probe,
    *,
    at_least: float,
    than: Score | None = None,
    temperature: float | None = None,
    otherwise: Iterable[Plan] = (),
) -> Requests[Score | None]: ...


@overload
def measure(plan: Sequence[Plan] | Sequence[Probe]) -> Requests[list[Score]]: ...


def measure(
    plan: Plan | Probe | Sequence[Plan] | Sequence[Probe],
    *,
    at_least: float | None = None,
    than: Score | None = None,
    temperature: float | None = None,
    otherwise: Iterable[Plan] = (),
) -> Requests[Result]:
    """Measure a plan, or a probe on the way to one; return its score.

    Of several that do not depend on each other's scores, return the scores in the same order. With `at_least`, measure only as
    far as the plan can reach that score, and return None as soon as it cannot; a plan that reaches it is taken. `than` is the
    score that the floor was made from, and `otherwise` what is asked for next if the floor is missed (see `AtLeast`).
    `temperature` is what a search by annealing had at this step; reports show it.
    """
    if isinstance(plan, Plan | Probe):
        return (yield plan if at_least is None else AtLeast(plan, at_least, temperature, than, otherwise))
    # A list of plans or one of probes: their types cannot be told apart once they are in one argument.
    return (yield cast("list[Plan]", list(plan)))


def best_of(plans: Sequence[Plan] | Sequence[Probe], keep: int = 1) -> Requests[list[Score | None]]:
    """Measure plans of which only the best `keep` are wanted; return their scores in the same order.

    One that was given up, since it surely is none of the best, has None (see `BestOf`). The best ones always have scores.
    """
    return cast("list[Score | None]", (yield BestOf(cast("tuple[Plan, ...]", tuple(plans)), keep)))


def note(text: str) -> Requests[None]:
    """Say something to the user."""
    yield Note(text)


class Staged(Protocol):
    """What an objective may request of the model under a plan; `execution.staged_model.StagedModel` is one."""

    def loglikelihoods(self, items: Sequence[Item]) -> list[tuple[float, ...]]:
        """Return for each item the summed log-probability (nats) of each of its choices behind the prompt."""

    def divergences(self, items: Sequence[Item], along: Along = "both") -> list[float]:
        """Return for each item how far the plan is from the dense model, 0 or more.

        It is the mean, over the tokens of `item.continuations(along)`, of KL(dense || plan) in nats between the two
        distributions of the next token: along the dense model's own answer, which items have where the objective asks for it by
        `answer_length`, and along the right choice.
        """

    def overlaps(self, items: Sequence[Item], along: Along = "both") -> list[float]:
        """Return for each item how much the plan's distributions have in common with the dense model's, 0 to 1.

        It is the mean, over the same tokens, of the sum over the vocabulary of the smaller of the two probabilities: the chance
        that the dense model accepts a token which the plan drafts.
        """
