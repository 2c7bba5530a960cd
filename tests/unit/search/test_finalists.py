"""The last word between the best plans of a search."""

from __future__ import annotations

import pytest

from pdtrim_core.data.readings import Reading, Score
from pdtrim_core.plan.elements import Drop, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.search.finalists import choose


def plan(block: int) -> Plan:
    return Plan.unified(Removal([Drop(block)]))


def score(*items: float) -> Score:
    mean = sum(items) / len(items)
    return Score(Reading(100 * mean, mean, items, slope=100.0))


START = plan(0)
SCORES = {
    START: score(0.5, 0.5, 0.5, 0.5),
    plan(1): score(0.6, 0.6, 0.6, 0.6),  # surely better
    plan(2): score(0.1, 1.0, 0.9, 0.9),  # better, by luck perhaps
}


def test_without_caution_the_greatest_gain_wins() -> None:
    assert choose(SCORES, START, 0.0).plan == plan(2)


def test_with_caution_a_surer_gain_wins() -> None:
    found = choose(SCORES, START, 2.0)
    assert (found.plan, found.stays) == (plan(1), False)
    assert found.gain == pytest.approx(10.0)
    assert found.error == pytest.approx(0.0)


def test_the_start_stays_where_no_gain_is_sure_and_the_greatest_is_told() -> None:
    found = choose({key: SCORES[key] for key in (START, plan(2))}, START, 2.0)
    assert (found.plan, found.stays) == (START, True)
    assert found.gain == pytest.approx(22.5)
    assert found.gain < 2 * found.error


@pytest.mark.parametrize("caution", [0.0, 2.0])
def test_the_start_stays_on_a_tie(caution: float) -> None:
    assert choose({START: SCORES[START], plan(1): SCORES[START]}, START, caution).plan == START
