"""Broken components are caught by the distiller contract, each by the test that is meant for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from pdtrim_core.api import Distiller
from pdtrim_core.testing import DistillerContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pdtrim_core.api import Student, TeacherBatches

    Failing = Callable[..., set[str]]


class Descent(Distiller):
    """A few plain steps down the mean squared error."""

    name = "descent"

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        for _ in range(3):
            yield _epoch(student, batches, student.parameters())


def _epoch(student: Student, batches: TeacherBatches, parameters: list[torch.nn.Parameter], rate: float = 1e-4) -> float:
    total = 0.0
    for batch in batches:
        loss = (student(batch) - batch.after_BTD).square().mean()
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if gradient is not None:
                parameter.data.sub_(rate * gradient)
        total += float(loss.detach())
    return total / len(batches)


class SaysNothing(Descent):
    """Trains without a word."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        list(super().distil(student, batches))
        yield from ()


class Ascent(Descent):
    """Goes up where it should go down."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        for _ in range(3):
            yield _epoch(student, batches, student.parameters(), rate=-1e-4)


class Blows(Descent):
    """Ends with a loss that is not a number."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        yield from super().distil(student, batches)
        yield float("nan")


class TrainsNothing(Descent):
    """Only measures."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        yield _epoch(student, batches, student.parameters(), rate=0.0)


class ThawsEverything(Descent):
    """Trains what the run keeps frozen."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        student.module.requires_grad_(requires_grad=True)
        yield from super().distil(student, batches)


class StartsFromNoise(Descent):
    """Shakes the weights first, with torch's own generator."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        for parameter in student.parameters():
            parameter.data.add_(1e-5 * torch.randn_like(parameter))
        yield from super().distil(student, batches)


class Decays(Descent):
    """Shrinks all weights a little at every step, whether the loss asks for it or not."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        for loss in super().distil(student, batches):
            for parameter in student.parameters():
                parameter.data.mul_(0.9)
            yield loss


class TrainsTheTeacher(Descent):
    """Moves the dense model's block as well."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        next(student.model.blocks[0].parameters()).data[0] += 1e-3
        yield from super().distil(student, batches)


class TrainsInTheFormatOfTheModel(Descent):
    """Casts the student, since its other author knew no better."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        student.module.to(next(student.model.model.parameters()).dtype)
        yield from super().distil(student, batches)


class TakesOneFormatForGranted(Descent):
    """Multiplies the states with each other, which must have one format for that."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        for batch in batches:
            student(batch) @ batch.before_BTD.transpose(1, 2) @ batch.after_BTD
        yield from super().distil(student, batches)


class LeavesAHookOnTheTeacher(Descent):
    """Watches the gradients of the dense model's head for ever."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        student.model.model.lm_head.register_full_backward_hook(lambda module, before, after: None)
        yield from super().distil(student, batches)


class GivesTheTeacherGradients(Descent):
    """Lets the blocks behind the student take gradients, and leaves them there."""

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        student.model.blocks[5].requires_grad_(requires_grad=True)
        for batch in batches:
            torch.autograd.backward([logits.sum() for logits in student.logits(batch, student(batch))])
        student.model.blocks[5].requires_grad_(requires_grad=False)
        yield from super().distil(student, batches)


@pytest.mark.parametrize("component", [Descent, TakesOneFormatForGranted])
def test_a_good_distiller_passes_every_test(component: type[Distiller], failing: Failing) -> None:
    assert failing(DistillerContract, component) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (SaysNothing, "test_it_yields_finite_losses_that_do_not_rise"),
        (Ascent, "test_it_yields_finite_losses_that_do_not_rise"),
        (Blows, "test_it_yields_finite_losses_that_do_not_rise"),
        (TrainsNothing, "test_it_trains_in_place"),
        (TrainsInTheFormatOfTheModel, "test_it_trains_in_float32_where_the_model_is_in_bfloat16"),
        (ThawsEverything, "test_what_is_frozen_stays"),
        (StartsFromNoise, "test_the_same_student_and_tokens_give_the_same_block"),
        (Decays, "test_merging_a_silent_block_costs_nothing"),
        (TrainsTheTeacher, "test_the_model_is_left_as_it_was"),
        (LeavesAHookOnTheTeacher, "test_the_model_is_left_as_it_was"),
        (GivesTheTeacherGradients, "test_the_model_is_left_as_it_was"),
    ],
)
def test_a_broken_distiller_is_caught(component: type[Distiller], test: str, failing: Failing) -> None:
    assert failing(DistillerContract, component, test) == {test}
