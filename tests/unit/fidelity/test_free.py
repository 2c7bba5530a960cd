"""Answers beside the dense model's."""

from __future__ import annotations

import pytest

from pdtrim_core.fidelity.free import beside, loops


def test_the_same_answers_never_differ() -> None:
    found = beside([[1, 2, 3], [4, 5]], [[1, 2, 3], [4, 5]])
    assert {name: metric.value for name, metric in found.items()} == {"identical": 1.0, "length": 1.0, "loops": 0.0}


def test_tokens_in_common_are_counted_over_answers_that_differ() -> None:
    dense = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]
    plan = [[1, 2, 9, 9], [1, 2, 3, 4], [9]]
    found = beside(dense, plan)
    assert found["identical"].value == pytest.approx(1 / 3)
    assert found["until_difference"].value == (2 + 4 + 0) / 2
    assert found["length"].value == 9 / 12


def test_an_answer_that_ends_early_or_late_differs_where_one_has_ended() -> None:
    assert beside([[1, 2, 3]], [[1, 2]])["until_difference"].value == 2
    assert beside([[1, 2]], [[1, 2, 3]])["until_difference"].value == 2


@pytest.mark.parametrize(
    ("answer", "repeats"),
    [([], False), ([1, 2, 3], False), ([1, 2, 3, 4] * 2, False), ([1, 2, 3, 4] * 3, True), ([7] * 6, True), ([7] * 5, False)],
)
def test_an_answer_loops_where_four_tokens_occur_three_times(answer: list[int], repeats: bool) -> None:
    assert loops(answer) is repeats
