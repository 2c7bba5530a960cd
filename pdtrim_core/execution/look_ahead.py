"""Questions about plans that are answered together: each block of a model on the disk is read once for all of them.

Who asks a plan for something, such as an objective for log-probabilities, wants the answer at once. Where weights are in memory
it gets it. Where they stay on the disk, all questions are begun, to learn which batches each of them needs under which plan;
these are carried through the blocks together; and the questions are asked again, with what they need at hand. So a question
has to be such that it may be asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.passes import Pass, results_of

T = TypeVar("T")


class NotYetError(BaseException):
    """Ends a question whose hidden states are not there yet; no handler of errors in a plugin is meant to see it."""


class LookAhead:
    """Hidden states behind the last blocks, of those batches and plans that were asked for."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Tensor] = {}
        self._wanted: dict[Hashable, Pass[Tensor]] = {}

    def results_of(self, passes: Mapping[Hashable, Pass[Tensor]]) -> Iterator[Tensor]:
        """Return what passes give that are known by what they are of. Raises `NotYetError` until they have been carried out."""
        missing = {key: one for key, one in passes.items() if key not in self._found}
        if missing:
            self._wanted = {**missing, **self._wanted}
            raise NotYetError
        return (self._found[key] for key in passes)

    def carry_out(self) -> None:
        """Carry out the passes that were asked for, all of them block by block."""
        wanted, self._wanted = self._wanted, {}
        with torch.inference_mode():
            self._found |= zip(wanted, results_of(wanted.values(), together=True), strict=True)


def answers_of(model: BlockModel, questions: Sequence[Callable[[LookAhead | None], T]]) -> list[T]:
    """Return the answers to questions, each of which hands what it is given on to the `StagedModel` that it asks.

    Where the model's weights are in memory they are asked one after the other.
    """
    if not model.streams:
        return [question(None) for question in questions]
    ahead, answers = LookAhead(), dict[int, T]()
    while len(answers) < len(questions):
        for number, question in enumerate(questions):
            if number not in answers:
                try:
                    answers[number] = question(ahead)
                except NotYetError:
                    continue
        ahead.carry_out()
    return [answers[number] for number in range(len(questions))]
