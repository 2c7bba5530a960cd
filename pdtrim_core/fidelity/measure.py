"""All figures of one variant: along the dense model's answers, along text, of choices that changed, and of its own answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pdtrim_core.data.items import Item
from pdtrim_core.execution.packing import packing_agrees
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.side_by_side import compare
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.staged_model import ComparedToken, StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity import free
from pdtrim_core.fidelity.dense_answers import answers_of, dense_answers
from pdtrim_core.fidelity.forced import along_answers, along_text
from pdtrim_core.fidelity.inputs import Needle, spread
from pdtrim_core.fidelity.retrieved import retrieved
from pdtrim_core.fidelity.statistics import mcnemar, ratio
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.plan import FirstToken, Plan
from pdtrim_core.results.task_results import ItemAnswer, Metric

ANSWER_TOKENS = 64
TRIALS, TRIAL_TOKENS = 2, 8
"""Items on which it is tried whether choices may share a row, which is a matter of the family, and tokens of their parts."""
Answers = Sequence[Sequence[int]]
"""The tokens of the answer to each prompt."""
HELD_BYTES = 2**28
"""Bytes of hidden states that variants share, of one batch at a time."""


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


def measure(subject: Subject, items: Sequence[Item], *, length: int = ANSWER_TOKENS, code: Mapping[str, str]) -> Found:
    """Return how far a variant is from the dense model on items that nothing was chosen on.

    `length` are the tokens of an answer at most, `code` is what makes the dense model's answers, by name, under which they are
    kept.
    """
    (found,) = measure_all([subject], items, length=length, code=code)
    return found


def measure_all(  # noqa: PLR0913 - one for each thing that the figures depend on, and what is told
    subjects: Sequence[Subject],
    items: Sequence[Item],
    *,
    length: int = ANSWER_TOKENS,
    code: Mapping[str, str],
    needles: Sequence[Needle] = (),
    own_answers: int | None = None,
    told: Callable[[float], None] = lambda share: None,
) -> list[Found]:
    """Return what `measure` does of several variants of one dense model, which runs the items once for all of them.

    `needles` has what each answer must contain, where this is a needle test: then there are figures of that, too. `own_answers`
    is on how many items the variants answer on their own, evenly spread: on all of them unless given. `told` is called with the
    share of the work that is done.
    """
    assert own_answers is None or not needles
    dense, prompts = _dense_of(subjects), _prompts(items)
    work = Parts(1 + 2 * len(subjects), told)
    theirs = dense_answers(dense, prompts, length, code=code, answered=work.share_of(len(prompts)))
    work.end(1)
    all_compared = _compared(subjects, items, theirs, work)
    answered = spread(range(len(items)), len(items) if own_answers is None else own_answers)
    ours = _own_answers(subjects, [prompts[number] for number in answered], [theirs[number] for number in answered], length, work)
    found = []
    for number, compared in enumerate(all_compared):
        of_subject = _found(items, compared, theirs, dict(zip(answered, ours[number], strict=True)), dense)
        found.append(_with_needles(of_subject, needles, theirs, dense) if needles else of_subject)
    return found


def _own_answers(subjects: Sequence[Subject], prompts: Answers, theirs: Answers, length: int, work: Parts) -> dict[int, Answers]:
    """Return what each variant answers on its own, by its number; those that decode alike write together."""
    dense = _dense_of(subjects)
    found: dict[int, Answers] = {}
    groups: list[dict[int, TwoPhaseModel]] = []
    for number, subject in enumerate(subjects):
        if subject.model is dense and subject.plan == Plan() and not subject.modules:
            found[number] = theirs
            continue
        pair = TwoPhaseModel(subject.model, subject.plan, subject.modules, first_token=subject.first_token)
        alike = next((group for group in groups if pair.decodes_as(next(iter(group.values())))), None)
        if alike is None:
            groups.append({number: pair})
        else:
            alike[number] = pair
    work.end(len(found))
    for group in groups:
        made = answers_of(list(group.values()), prompts, length, work.share_of(len(prompts), len(group)))
        found.update(zip(group, made, strict=True))
        work.end(len(group))
    return found


def measure_forced(subjects: Sequence[Subject], items: Sequence[Item], *, length: int, code: Mapping[str, str]) -> list[Found]:
    """Return what `measure_all` does but for the variants' own answers, which take half of its time: they write none."""
    dense = _dense_of(subjects)
    theirs = dense_answers(dense, _prompts(items), length, code=code)
    compared = _compared(subjects, items, theirs, Parts(len(subjects), lambda share: None))
    return [_found(items, of_subject, theirs, {}, dense) for of_subject in compared]


class Parts:
    """Tells the share that is done of work in parts which take about as long each."""

    def __init__(self, count: int, told: Callable[[float], None]) -> None:
        self._count = count
        self._told = told
        self._done = 0.0
        self._ended = 0

    def share_of(self, steps: int, parts: int = 1) -> Callable[[float], None]:
        """Return what is told how many more are done of the steps that so many parts take together."""

        def done(more: float) -> None:
            self._done += parts * more / max(1, steps)
            self._told(min(1.0, self._done / self._count))

        return done

    def end(self, parts: int) -> None:
        """Take note that so many more parts are done, whatever was told of them: what is known already takes no steps."""
        self._ended += parts
        self._done = max(self._done, float(self._ended))
        self._told(min(1.0, self._done / self._count))


def _dense_of(subjects: Sequence[Subject]) -> BlockModel:
    """Return the dense model that all variants are beside."""
    dense = subjects[0].dense or subjects[0].model
    assert all((subject.dense or subject.model) is dense for subject in subjects)
    return dense


def _prompts(items: Sequence[Item]) -> list[tuple[int, ...]]:
    return [item.prompt_of(item.answer) for item in items]


@dataclass(frozen=True)
class Compared:
    """A variant beside the dense model along its answer to an item's prompt, and along each choice of the item."""

    answer: Sequence[ComparedToken]
    choices: Sequence[Sequence[ComparedToken]]


def _compared(subjects: Sequence[Subject], items: Sequence[Item], theirs: Answers, work: Parts) -> list[list[Compared]]:
    """Return for each variant how it differs from the dense model on each item; variants that can share a pass do."""
    asked = [_with_answer(item, answer) for item, answer in zip(items, theirs, strict=True)]
    flat = list(dict.fromkeys(one for of_item in asked for one in of_item))
    found: dict[int, list[Compared]] = {}
    for numbers in _passes(subjects):
        first = subjects[numbers[0]]
        dense = first.dense or first.model
        packed = packing_agrees(dense, tuple(map(_shortened, flat[:TRIALS])), batch_tokens=None)
        options = ExecutionOptions(first_token=first.first_token, budget=HELD_BYTES, packed=packed)
        prefix_cache = PrefixCache(first.model, options, dense=first.dense)
        models = [StagedModel(prefix_cache, subjects[number].plan, subjects[number].modules) for number in numbers]
        of_models = compare(prefix_cache, models, flat, work.share_of(len(flat), len(models)))
        work.end(len(models))
        for number, of_flat in zip(numbers, of_models, strict=True):
            by_item = dict(zip(flat, of_flat, strict=True))
            found[number] = [_parted([choice for one in of_item for choice in by_item[one]]) for of_item in asked]
    return [found[number] for number in range(len(subjects))]


def _with_answer(item: Item, answer: Sequence[int]) -> tuple[Item, ...]:
    """Return what has the dense answer as its first choice, and all choices of an item behind it."""
    prompt, length = item.prompt_of(item.answer), (len(answer),)
    if item.one_prompt:
        return (Item((prompt,), (tuple(answer), *item.choices), 0, (1, *item.choice_bytes), item.name),)
    return Item((prompt,), (tuple(answer),), 0, length, item.name), item


def _shortened(item: Item) -> Item:
    prompts = tuple(prompt[-TRIAL_TOKENS:] for prompt in item.prompts)
    return replace(item, prompts=prompts, choices=tuple(choice[:TRIAL_TOKENS] for choice in item.choices))


def _parted(choices: Sequence[Sequence[ComparedToken]]) -> Compared:
    return Compared(choices[0], choices[1:])


def _passes(subjects: Sequence[Subject]) -> list[list[int]]:
    """Return the numbers of variants in groups that differ in nothing but their plans."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, subject in enumerate(subjects):
        groups.setdefault((id(subject.model), id(subject.dense), subject.first_token), []).append(number)
    return list(groups.values())


def _found(
    items: Sequence[Item],
    compared: Sequence[Compared],
    theirs: Answers,
    ours: Mapping[int, Sequence[int]],
    dense: BlockModel,
) -> Found:
    """Return the figures of a variant; `ours` has what it answers on its own to some of the items, by their number."""
    along = [one.answer for one in compared]
    right = [one.choices[item.answer] for one, item in zip(compared, items, strict=True)]
    beside = free.beside([theirs[number] for number in ours], list(ours.values())) if ours else {}
    metrics = {**along_answers(along), **along_text(right), **beside, **flips(items, compared)}
    of_prompts = enumerate(zip(items, along, strict=True))
    return Found(metrics, tuple(_answer(item, tokens, ours.get(number), dense) for number, (item, tokens) in of_prompts))


def _with_needles(found: Found, needles: Sequence[Needle], theirs: Sequence[Sequence[int]], dense: BlockModel) -> Found:
    """Return the figures with those of needles in front; whether an answer has its needle is a value of it."""
    has = [needle.text in answer.answer for needle, answer in zip(needles, found.answers, strict=True)]
    dense_has = [needle.text in dense.tokenizer.decode(list(one)) for needle, one in zip(needles, theirs, strict=True)]
    answers = [replace(one, values={**one.values, "needle": float(is_in)}) for one, is_in in zip(found.answers, has, strict=True)]
    return Found({**retrieved(needles, has, dense_has), **found.metrics}, tuple(answers))


def flips(items: Sequence[Item], compared: Sequence[Compared]) -> dict[str, Metric]:
    """Return the shares of items that went from right to wrong and back, and McNemar's p; nothing where there are no choices."""
    changed = [
        tuple(_choice(one, name) == item.answer for name in ("dense_logprob", "logprob"))
        for item, one in zip(items, compared, strict=True)
        if len(item.choices) > 1
    ]
    if not changed:
        return {}
    worse, better = ([float(before is was and after is not was) for before, after in changed] for was in (True, False))
    ones = [1.0] * len(changed)
    return {
        "right_to_wrong": ratio(worse, ones, higher_is_better=False),
        "wrong_to_right": ratio(better, ones, higher_is_better=True),
        "flips_p": Metric(mcnemar(int(sum(worse)), int(sum(better)))),
    }


def _choice(compared: Compared, name: str) -> int:
    """Return the number of the likeliest choice, the first of those that are equal."""
    sums = [math.fsum(getattr(token, name) for token in tokens) for tokens in compared.choices]
    return sums.index(max(sums))


def _answer(item: Item, tokens: Sequence[ComparedToken], answer: Sequence[int] | None, dense: BlockModel) -> ItemAnswer:
    values = {
        "kl": math.fsum(token.divergence for token in tokens) / len(tokens),
        "top1": sum(token.same for token in tokens) / len(tokens),
        "tokens": float(len(tokens)),
    }
    return ItemAnswer(item.name, values, None if answer is None else dense.tokenizer.decode(list(answer)))
