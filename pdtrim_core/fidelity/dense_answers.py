"""What the dense model answers to prompts, greedily: made once for its weights, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.files.atomic_files import alone, cache_folder, write_whole
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.plan import Plan

BATCH_PROMPTS, BATCH_TOKENS = 64, 12288
"""Prompts that generate together, and tokens of these with their answers: what bounds the memory of the K/V."""
Prompts = Sequence[Sequence[int]]


def dense_answers(
    model: BlockModel,
    prompts: Prompts,
    length: int,
    *,
    code: Mapping[str, str],
    fresh: bool = False,
    answered: Callable[[float], None] = lambda count: None,
) -> list[list[int]]:
    """Return the dense model's greedy answers of at most so many tokens, from the cache where the same code made them before.

    `code` is what made them, by name. Answers that another process is making are waited for. `answered` is told how many more
    prompts have their answer, where half the answers of two prompts count as one.
    """
    what = [model.exact_fingerprint, repr(model.layout), str(model.dtype), [list(p) for p in prompts], length, dict(code)]
    path = cache_folder() / "answers" / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()}.json"
    with alone(path):
        known = None if fresh else _known(path, len(prompts))
        if known is not None:
            return known
        found = answers(TwoPhaseModel(model, Plan()), prompts, length, answered)
        write_whole(path, json.dumps({"sha256": _digest(found), "answers": found}) + "\n")
    return found


def beginnings(
    model: BlockModel,
    prompts: Iterable[tuple[int, ...]],
    length: int,
    *,
    code: Mapping[str, str],
    fresh: bool = False,
    answered: Callable[[float], None] = lambda count: None,
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return the beginning of the dense model's greedy answer to each prompt, of so many tokens at most.

    It is shorter where the answer ends, and where the model has learned no more positions. `code`, `fresh` and
    `answered` are as for `dense_answers`.
    """
    of_length: dict[int, list[tuple[int, ...]]] = {}
    for prompt in dict.fromkeys(prompts):
        room = length if model.positions is None else min(length, model.positions - len(prompt))
        of_length.setdefault(room, []).append(prompt)
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for room, group in of_length.items():
        made = dense_answers(model, group, room, code=code, fresh=fresh, answered=answered)
        found.update(zip(group, map(tuple, made), strict=True))
    return found


def answers(
    pair: TwoPhaseModel, prompts: Prompts, length: int, answered: Callable[[float], None] = lambda count: None
) -> list[list[int]]:
    """Return a pair's greedy answers to prompts, each up to its end-of-text token, which counts, or to so many tokens."""
    (found,) = answers_of([pair], prompts, length, answered)
    return found


def answers_of(
    pairs: Sequence[TwoPhaseModel], prompts: Prompts, length: int, answered: Callable[[float], None] = lambda count: None
) -> list[list[list[int]]]:
    """Return for each of some pairs with the same decode its greedy answers to prompts, as `answers` does of one."""
    found: list[dict[int, list[int]]] = [{} for _ in pairs]
    for group in _groups(prompts, length, len(pairs)):
        each = len(group) / length
        steps = Steps(partial(answered, each))
        made = pairs[0].greedy_batch([prompts[number] for number in group], length, steps, beside=pairs[1:])
        answered(len(group) - each * steps.count)
        for number, of_pair in enumerate(found):
            of_pair.update(zip(group, made[number * len(group) : (number + 1) * len(group)], strict=True))
    return [[of_pair[number] for number in range(len(prompts))] for of_pair in found]


class Steps:
    """Counts how often it is called, and tells it on."""

    def __init__(self, told: Callable[[], None]) -> None:
        self.count = 0
        self._told = told

    def __call__(self) -> None:
        """Count and tell."""
        self.count += 1
        self._told()


def _groups(prompts: Prompts, length: int, pairs: int) -> list[list[int]]:
    """Return the numbers of prompts in groups that so many pairs answer together, the shortest first."""
    groups: list[list[int]] = []
    for number in sorted(range(len(prompts)), key=lambda number: len(prompts[number])):
        rows = len(groups[-1]) + 1 if groups else 0
        if not groups or rows > BATCH_PROMPTS or rows * pairs * (len(prompts[number]) + length) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(number)
    return groups


def _known(path: object, count: int) -> list[list[int]] | None:
    """Return answers that were kept; None where there are none, or where the file is damaged."""
    try:
        data = read_json(str(path))
        found = data["answers"]
        whole = data["sha256"] == _digest(found) and len(found) == count
    except (FileNotFoundError, UnreadableError, TypeError, KeyError):
        return None
    return [list(answer) for answer in found] if whole else None


def _digest(found: object) -> str:
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
