"""The kinds of component that say what plans are measured by, and on what: objectives and calibration sources."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from random import Random
from typing import ClassVar

from pydantic import Field

from pdtrim_core.api.component import Component
from pdtrim_core.api.requests import Staged
from pdtrim_core.data.items import Item, Sample
from pdtrim_core.data.texts import python_reference


class Objective(Component):
    """Values a plan, item by item, in a unit of its own; the core averages the values and turns the mean into a score."""

    kind = "objective"

    unit: ClassVar[str] = ""
    best_item: ClassVar[float | None] = None
    """The best value that an item can have, so that the core may stop early; None where there is no bound."""

    @property
    def answer_length(self) -> int:
        """The length, in tokens at most, of the dense model's own answers that items are to have as `Item.dense_answer`.

        They are greedy answers to the right choice's prompt. With 0, none are made.
        """
        return 0

    @abstractmethod
    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        """Return one value an item, each the same whatever other items are beside it."""

    @abstractmethod
    def score(self, mean: float) -> float:
        """Return the score of a mean over items, 0 to 100; higher is better.

        It is also called slightly beyond the means that can occur, for its slope; and, without a `best_item`, as far on the
        better side as the mean of a few items leaves open.
        """

    def weight(self, item: Item) -> float:
        """Return the item's weight in the mean, above 0."""
        del item
        return 1.0

    def problems(self, items: Sequence[Item]) -> list[str]:
        """Return why these items cannot be measured by this objective."""
        del items
        return []


class CalibrationSource(Component):
    """Gives the samples that a run measures on, and held-out ones to evaluate on at the end."""

    kind = "calibration"

    samples: int = Field(256, gt=0, description="number of items to measure on (the paper: 256)")
    held_out: int = Field(64, ge=0, description="number of held-out items to evaluate on at the end")

    @abstractmethod
    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        """Return so many samples drawn with `rng`. Where there are no more, return fewer, or raise `PdtrimError`."""

    def training_texts(self, rng: Random) -> Iterable[str]:
        """Return texts to train merges on, disjoint from what measures; the prose of the Python reference unless overridden."""
        texts = python_reference()
        rng.shuffle(texts)
        return texts

    def training_prompts(self, rng: Random) -> Iterable[str]:
        """Return prompts that the dense model may answer, so that a recovery learns from its answers; none unless overridden.

        Those that also measure may be among them: they are left out.
        """
        del rng
        return ()

    def draw_held_out(self, count: int, rng: Random) -> Iterable[Sample] | None:
        """Return samples of another origin to hold out; None to take them from a larger `draw`."""
        del count, rng
        return None
