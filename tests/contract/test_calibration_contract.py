"""Broken components are caught by the calibration source contract, each by the test that is meant for it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import CalibrationSource, Sample
from pdtrim_core.testing import (
    CalibrationContract,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Failing = Callable[..., set[str]]
    from collections.abc import Iterable
    from random import Random
from typing import Any


class Numbers(CalibrationSource):
    """Sums of two numbers."""

    name = "numbers"

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        return [_sum(number) for number in rng.sample(range(100), min(100, count))]


def _sum(number: int) -> Sample:
    return Sample(f"{number} + 1 =", (f" {number + 1}", f" {number + 2}"), name=str(number))


class OneFewer(Numbers):
    """Counts from one."""

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        return list(super().draw(count, rng))[1:]


class IgnoresItsRng(Numbers):
    """Gives the same samples to everyone."""

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        return [_sum(number) for number in range(min(100, count))]


class DrawsGlobally(Numbers):
    """Shuffles with the module `random`."""

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        return [_sum(number) for number in random.sample(range(100), min(100, count))]


class KeepsTheSameApart(Numbers):
    """Evaluates on what it measures on."""

    def draw_held_out(self, count: int, rng: Random) -> Iterable[Sample]:
        return [_sum(number) for number in rng.sample(range(100), count)]


class WithoutPrompts(Numbers):
    """Scores text that nothing stands before."""

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        return [Sample(" ", sample.choices) for sample in super().draw(count, rng)]


class AnswersAnyPrompts(Numbers):
    """Gives other prompts to answer each time."""

    def training_prompts(self, rng: Random) -> Iterable[str]:
        return [str(random.random())]


class TrainsOnSamples(Numbers):
    """Gives samples where texts are wanted."""

    def training_texts(self, rng: Random) -> Iterable[Any]:
        return self.draw(4, rng)


class FailsOnMany(Numbers):
    """Lets Python complain where there are no more samples."""

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        return [_sum(number) for number in rng.sample(range(100), count)]


def test_a_good_calibration_source_passes_every_test(failing: Failing) -> None:
    assert failing(CalibrationContract, Numbers) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (OneFewer, "test_it_draws_as_many_samples_as_it_is_asked_for"),
        (IgnoresItsRng, "test_another_seed_draws_other_samples"),
        (DrawsGlobally, "test_the_same_seed_draws_the_same_samples"),
        (KeepsTheSameApart, "test_what_is_kept_apart_does_not_measure"),
        (WithoutPrompts, "test_every_sample_can_be_tokenised"),
        (AnswersAnyPrompts, "test_what_it_trains_on_is_text_and_the_same_for_a_seed"),
        (TrainsOnSamples, "test_what_it_trains_on_is_text_and_the_same_for_a_seed"),
        (FailsOnMany, "test_more_than_there_is_gives_fewer_or_says_so"),
    ],
)
def test_a_broken_calibration_source_is_caught(component: type[CalibrationSource], test: str, failing: Failing) -> None:
    assert failing(CalibrationContract, component, test) == {test}
