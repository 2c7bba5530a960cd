"""Objectives: accuracy, the margin of the right choice, perplexity, the divergence from the dense model, acceptance by it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from pdtrim_core.api import Along, Item, Objective, Staged, hookimpl


def _need_choices(items: Sequence[Item]) -> list[str]:
    single = [item for item in items if len(item.choices) < 2]
    if not single:
        return []
    return [f"{len(single)} of {len(items)} items have one choice only, such as '{single[0].name}': use objective = \"kl\""]


class Accuracy(Objective):
    """Share of items whose right choice has the highest log-probability."""

    name = "accuracy"
    unit = "share of items"
    best_item: ClassVar[float | None] = 1.0

    per_byte: bool = Field(default=False, description="divide each choice's log-probability by its length in bytes (acc_norm)")

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        """Return 1 for a right answer, 0 for a wrong one; the first of equal choices counts as the model's answer."""
        return [
            float(self._answer(item, sums) == item.answer) for item, sums in zip(items, staged.loglikelihoods(items), strict=True)
        ]

    def _answer(self, item: Item, sums: Sequence[float]) -> int:
        scale = item.choice_bytes if self.per_byte else [1] * len(sums)
        return max(range(len(sums)), key=lambda choice: (sums[choice] / scale[choice], -choice))

    def score(self, mean: float) -> float:
        """Return percent."""
        return 100 * mean

    def problems(self, items: Sequence[Item]) -> list[str]:
        """Refuse items that have only one choice."""
        return _need_choices(items)


class Margin(Objective):
    """Probability of the right choice among the choices, by length: smooth, and less noisy than accuracy on few items.

    A choice counts by its log-probability divided by its length, as in `acc_norm` of lm-evaluation-harness. What is averaged are
    probabilities, not their logarithms: those reward a model for being sure of nothing, so that where the dense model is surely
    wrong, as with a few long choices or with letters that it cannot tell apart, a damaged one would seem better.
    """

    name = "margin"
    unit = "probability"
    best_item: ClassVar[float | None] = 1.0

    per: Literal["byte", "token"] = Field(default="byte", description="what a choice's length is counted in")

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        """Return the softmax over the choices' log-probabilities a byte or token, at the right one."""
        return [self._value(item, sums) for item, sums in zip(items, staged.loglikelihoods(items), strict=True)]

    def _value(self, item: Item, sums: Sequence[float]) -> float:
        lengths = item.choice_bytes if self.per == "byte" else [len(choice) for choice in item.choices]
        return _softmax([total / length for total, length in zip(sums, lengths, strict=True)])[item.answer]

    def score(self, mean: float) -> float:
        """Return percent."""
        return 100 * mean

    def problems(self, items: Sequence[Item]) -> list[str]:
        """Refuse items that have only one choice."""
        return _need_choices(items)


class Perplexity(Objective):
    """Negative log-likelihood of the right continuation, per token."""

    name = "perplexity"
    unit = "nats a token"
    best_item: ClassVar[float | None] = 0.0

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        """Return the mean negative log-likelihood of the right continuation's tokens."""
        sums = staged.loglikelihoods(items)
        return [-of_choices[item.answer] / self.weight(item) for item, of_choices in zip(items, sums, strict=True)]

    def weight(self, item: Item) -> float:
        """Return the number of scored tokens, so that every token counts the same."""
        return float(len(item.choices[item.answer]))

    def score(self, mean: float) -> float:
        """Return 100 divided by the perplexity."""
        return 100 * math.exp(-max(0.0, mean))


class BesideDense(Objective):
    """An objective that compares the next token's distributions with the dense model's along texts; it needs no choices."""

    along: Along = Field(
        default="both",
        description="along the dense model's own greedy answer to the prompt, along the right continuation, or along both",
    )
    answer_tokens: int = Field(default=32, gt=0, description="tokens of the dense model's answer to each item, at most")

    @property
    def answer_length(self) -> int:
        """Return how long answers are to be, if they are wanted."""
        return 0 if self.along == "right" else self.answer_tokens

    def weight(self, item: Item) -> float:
        """Return the number of scored tokens, so that every token counts the same."""
        return float(sum(map(len, item.continuations(self.along))))


class Divergence(BesideDense):
    """KL divergence of the pruned model from the dense one, along the dense model's answers and the right continuations.

    At each token of the dense model's own greedy answer to an item's prompt, and of the right continuation, it compares the two
    distributions of the next token. Other choices are not run, so items need none. The dense model has all points, and whatever
    damages it costs some: there is nothing to gain from being unlike it.
    """

    name = "kl"
    unit = "nats a token"
    best_item: ClassVar[float | None] = 0.0

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        """Return the mean divergence over the tokens of the texts; 0 where nothing differs."""
        return staged.divergences(items, self.along)

    def score(self, mean: float) -> float:
        """Return 100 for the dense model's own distributions, falling to 37 at one nat a token."""
        return 100 * math.exp(-max(0.0, mean))


class Acceptance(BesideDense):
    """Chance that the dense model accepts a token which the pruned one drafts for it in speculative decoding.

    At each token of the dense model's own greedy answer to an item's prompt it takes the sum over the vocabulary of the smaller
    of the two probabilities of the next token (Leviathan et al., 2023): the figure `acceptance` of fidelity, to search for.
    The dense model has all points, and whatever damages it costs some. A pair is measured as a pair. The draft that an engine
    runs reads its own prompt: search for one with the splitter `unified`.
    """

    name = "acceptance"
    cites = "Leviathan et al. (arXiv:2211.17192)"
    unit = "share of tokens"
    best_item: ClassVar[float | None] = 1.0

    along: Along = Field(
        default="answers",
        description="along the dense model's own greedy answer to the prompt, along the right continuation, or along both",
    )

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        """Return the mean overlap over the tokens of the texts; 1 where nothing differs."""
        return staged.overlaps(items, self.along)

    def score(self, mean: float) -> float:
        """Return percent."""
        return 100 * mean


def _softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    shares = [math.exp(value - top) for value in values]
    return [share / math.fsum(shares) for share in shares]


@hookimpl
def pdtrim_objectives() -> Iterable[type[Objective]]:
    """Yield the objectives."""
    yield from (Accuracy, Margin, Perplexity, Divergence, Acceptance)
