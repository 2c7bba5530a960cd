"""Block and pair scores."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import strategies as st

from pdtrim_core.data.scores import Scores, pair_scores
from tests.unit.examples import given

COARSE = st.integers(min_value=-4, max_value=4).map(lambda number: number / 4)


def test_a_pair_counts_its_own_score_and_that_of_its_more_redundant_block() -> None:
    # Eq. 3 by hand: (0.5 + max(0.9, 0.7)) / 2 and (0.3 + max(0.7, 0.8)) / 2; the sums are exact to float64's last digit.
    assert pair_scores([0.9, 0.7, 0.8], [0.5, 0.3]) == pytest.approx((0.7, 0.55), rel=1e-15)


@given(st.lists(COARSE, min_size=2, max_size=8))
def test_pair_scores_do_not_depend_on_which_block_of_a_pair_is_more_redundant(block: list[float]) -> None:
    two = [0.25] * (len(block) - 1)
    assert pair_scores(block[::-1], two) == pair_scores(block, two)[::-1]


def test_one_block_has_no_pairs() -> None:
    assert pair_scores([0.9], []) == ()


@given(st.lists(COARSE, min_size=1, max_size=8))
def test_the_ranking_falls_and_ties_go_to_the_lower_block(block: list[float]) -> None:
    order = Scores(tuple(block)).ranking()
    assert sorted(order) == list(range(len(block)))
    for before, after in pairwise(order):
        assert block[before] > block[after] or (block[before] == block[after] and before < after)


@pytest.mark.parametrize(
    ("scores", "problems"),
    [
        (Scores((1.0, 2.0, 3.0)), []),
        (Scores((1.0, 2.0, 3.0), (1.0, 2.0)), []),
        (Scores((1.0, 2.0)), ["2 block scores for 3 blocks"]),
        (Scores((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)), ["3 pair scores for 2 pairs"]),
        (Scores((1.0, math.nan, 3.0), (1.0, math.inf)), ["scores that are not finite, the first at position 1"]),
        (Scores((1.0, 2.0, 3.0), (1.0, -math.inf)), ["scores that are not finite, the first at position 4"]),
        (
            Scores((math.nan,), (1.0,)),
            [
                "1 block scores for 3 blocks",
                "1 pair scores for 2 pairs",
                "scores that are not finite, the first at position 0",
            ],
        ),
    ],
    ids=str,
)
def test_scores_tell_what_is_wrong_with_them(scores: Scores, problems: list[str]) -> None:
    assert scores.problems(3) == problems


def test_scores_are_written_with_what_they_are() -> None:
    scores = Scores((0.1, 0.2), (0.3,), similarity=True)
    assert json.loads(scores.to_json()) == {"index_base": 0, "block": [0.1, 0.2], "pair": [0.3], "similarity": True}
    assert scores.to_json() == scores.to_json()
