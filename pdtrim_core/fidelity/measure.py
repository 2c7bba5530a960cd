"""All figures of one variant: along the dense model's answers, along text, of choices that changed, and of its own answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pdtrim_core.data.items import Item
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.staged_model import ComparedToken, StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity import free
from pdtrim_core.fidelity.dense_answers import answers, dense_answers
from pdtrim_core.fidelity.forced import along_answers, along_text
from pdtrim_core.fidelity.statistics import mcnemar, ratio
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.plan import FirstToken, Plan
from pdtrim_core.results.task_results import ItemAnswer, Metric
from pdtrim_core.wording import visible

ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Subject:
    """What answers: a plan on a model, beside the dense model that it is to be like (`model` itself unless it was replaced)."""

    model: BlockModel
    plan: Plan
    modules: Modules = field(default_factory=dict)
    first_token: FirstToken = "decode"
    dense: BlockModel | None = None


@dataclass(frozen=True)
class Found:
    """The figures of a variant, and for each prompt its own: `kl` and `top1`, means over `tokens`, and its answer as text."""

    metrics: Mapping[str, Metric]
    answers: tuple[ItemAnswer, ...]


def measure(
    subject: Subject, items: Sequence[Item], *, length: int = ANSWER_TOKENS, code: Mapping[str, str], fresh: bool = False
) -> Found:
    """Return how far a variant is from the dense model on items that nothing was chosen on.

    `length` are the tokens of an answer at most, `code` is what makes the dense model's answers, by name, under which they are
    kept; `fresh` makes them anew.
    """
    dense = subject.dense or subject.model
    prompts = [item.prompt_of(item.answer) for item in items]
    theirs = dense_answers(dense, prompts, length, code=code, fresh=fresh)
    continued = [Item((tuple(p),), (tuple(a),), 0, (1,), item.name) for p, a, item in zip(prompts, theirs, items, strict=True)]
    staged = StagedModel(_prefix_cache(subject), subject.plan, subject.modules)
    compared = staged.compared(continued)
    ours = answers(
        TwoPhaseModel(subject.model, subject.plan, subject.modules, first_token=subject.first_token),
        subject.model,
        prompts,
        length,
    )
    metrics = {**along_answers(compared), **along_text(staged.compared(items)), **free.beside(theirs, ours)}
    metrics |= flips(staged, StagedModel(_prefix_cache(Subject(dense, Plan())), Plan()), items)
    of_prompts = zip(items, compared, ours, strict=True)
    return Found(metrics, tuple(_answer(item, tokens, answer, dense) for item, tokens, answer in of_prompts))


def flips(staged: StagedModel, dense: StagedModel, items: Sequence[Item]) -> dict[str, Metric]:
    """Return the shares of items that went from right to wrong and back, and McNemar's p; nothing where there are no choices."""
    several = [item for item in items if len(item.choices) > 1]
    if not several:
        return {}
    right = [
        [_choice(sums) == item.answer for item, sums in zip(several, model.loglikelihoods(several), strict=True)]
        for model in (dense, staged)
    ]
    changed = list(zip(*right, strict=True))
    worse, better = ([float(before is was and after is not was) for before, after in changed] for was in (True, False))
    ones = [1.0] * len(several)
    return {
        "right_to_wrong": ratio(worse, ones, higher_is_better=False),
        "wrong_to_right": ratio(better, ones, higher_is_better=True),
        "flips_p": Metric(mcnemar(int(sum(worse)), int(sum(better)))),
    }


def _choice(sums: Sequence[float]) -> int:
    return max(range(len(sums)), key=lambda choice: (sums[choice], -choice))


def _answer(item: Item, tokens: Sequence[ComparedToken], answer: Sequence[int], dense: BlockModel) -> ItemAnswer:
    values = {
        "kl": math.fsum(token.divergence for token in tokens) / len(tokens),
        "top1": sum(token.same for token in tokens) / len(tokens),
        "tokens": float(len(tokens)),
    }
    # A file of results holds no NUL, which a model may well write.
    return ItemAnswer(item.name, values, visible(dense.tokenizer.decode(list(answer))))


def _prefix_cache(subject: Subject) -> PrefixCache:
    return PrefixCache(subject.model, ExecutionOptions(first_token=subject.first_token, budget=0), dense=subject.dense)
