"""What components ask of the core while they work, such as the value of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pdtrim_core.data.items import Item
from pdtrim_core.plan.plan import Plan


@dataclass(frozen=True)
class Probe:
    """Ask for the value of a plan on the way to one: it may remove fewer blocks, and it is never the result."""

    plan: Plan


@dataclass(frozen=True)
class AtLeast:
    """Ask for a plan's value only if it reaches a floor (points); measuring may stop as soon as it cannot.

    A plan that reaches it is taken. `temperature` (points) is what a search by annealing had at this step; reports show it.
    """

    plan: Plan | Probe
    floor: float
    temperature: float | None = None


@dataclass(frozen=True)
class Note:
    """Something that a searcher or splitter has to say to the user; nothing is sent back."""

    text: str


Request = Plan | Probe | list[Plan] | list[Probe] | AtLeast | Note
"""What a searcher or splitter yields: a plan or a probe, several that are independent of each other, a plan with a floor, or a
note."""
Result = Any
"""What it is sent back: `Score` (a float), a list of them, or `Score` or None where the floor was not reached."""


class Staged(Protocol):
    """What an objective may ask of the model under a plan; `stages.StagedModel` is one."""

    def loglikelihoods(self, items: Sequence[Item]) -> list[tuple[float, ...]]:
        """Return for each item the summed log-probability (nats) of each of its choices behind the prompt."""

    def divergences(self, items: Sequence[Item]) -> list[float]:
        """Return for each item how far the plan is from the dense model, 0 or more.

        It is the mean, over the tokens of the right choice, of KL(dense || plan) in nats between the two distributions of
        the next token.
        """
