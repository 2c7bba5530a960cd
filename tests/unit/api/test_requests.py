"""What a searcher or splitter writes to measure, against what the loop sees of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import AtLeast, Drop, Note, Plan, Probe, Removal, measure, note
from pdtrim_core.testing.contracts.tables import score_of

if TYPE_CHECKING:
    from pdtrim_core.api import Request, Requests, Result

PLANS = [Plan(decode=Removal([Drop(block)])) for block in range(3)]


def exchange(requests: Requests[Result], result: Result) -> tuple[Request, Result]:
    """Return what is requested, and what comes back of a result that is sent."""
    request = next(requests)
    with pytest.raises(StopIteration) as stopped:
        requests.send(result)
    return request, stopped.value.value


def test_a_plan_or_a_probe_is_requested_as_it_is_and_its_score_comes_back() -> None:
    score = score_of(50.0)
    for plan in (PLANS[0], Probe(PLANS[0])):
        assert exchange(measure(plan), score) == (plan, score)


def test_plans_go_out_as_one_list_whatever_sequence_they_are_in() -> None:
    scores = [score_of(float(number)) for number in range(3)]
    assert exchange(measure(tuple(PLANS)), scores) == (PLANS, scores)
    assert exchange(measure([Probe(plan) for plan in PLANS]), scores) == ([Probe(plan) for plan in PLANS], scores)
    assert exchange(measure([]), []) == ([], [])


@pytest.mark.parametrize("floor", [0.0, 49.9])
def test_a_floor_goes_out_with_the_plan_also_where_it_is_zero(floor: float) -> None:
    assert exchange(measure(PLANS[0], at_least=floor), None) == (AtLeast(PLANS[0], floor), None)
    annealed = measure(Probe(PLANS[0]), at_least=floor, temperature=2.0)
    assert exchange(annealed, score_of(60.0)) == (AtLeast(Probe(PLANS[0]), floor, 2.0), score_of(60.0))


def test_a_note_gives_nothing_back() -> None:
    assert exchange(note("something"), None) == (Note("something"), None)
