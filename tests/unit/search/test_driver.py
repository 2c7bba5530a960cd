"""The ask-and-tell loop, on tables of numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

import pytest
from hypothesis import strategies as st

from pdtrim_core.api import requests
from pdtrim_core.api.requests import AtLeast, BestOf, Note, Probe, Request, Requests, Result
from pdtrim_core.data.readings import Candidate, Reading, Score, standard_error
from pdtrim_core.errors import PluginError, RecipeError
from pdtrim_core.plan.elements import Drop, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.search.driver import BestPlan, Exchange, Ledger, drive, drive_split, one_by_one
from pdtrim_core.search.stopping import Stop
from pdtrim_core.wording import shortened
from tests.unit.examples import given

LABEL = "searcher 'walk' (pdtrim-walk 1.0)"


def drop(*blocks: int) -> Plan:
    return Plan.unified(Removal(Drop(block) for block in blocks))


class Table:
    """Measures by looking up; notes how it was asked. Plans of `torn` are cut short below their floor."""

    def __init__(self, score: dict[Plan, float], torn: bool = False) -> None:
        self.score = score
        self.torn = torn
        self.calls: list[tuple[Plan, float | None, Reading | None]] = []

    def __call__(self, plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        self.calls.append((plan, floor, started))
        score = self.score[plan]
        if self.torn and floor is not None and score < floor:
            return Reading(None, None, (score, None), ceiling=score)
        return Reading(score, score / 100, (score, score), slope=1.0)


TABLE = {drop(block): float(score) for block, score in enumerate((50, 70, 60, 70, 20))}


def ask_all(*asks: Request) -> Requests[list[Result]]:
    answers = []
    for ask in asks:
        answers.append((yield ask))  # noqa: PERF401 - a comprehension cannot yield
    return answers


def drive_all(ledger: Ledger, *asks: Any, **options: Any) -> tuple[BestPlan | None, list[Result]]:
    return drive(ask_all(*asks), ledger, label=LABEL, **options)


# The best plan


def test_the_best_plan_is_found() -> None:
    found, answers = drive_all(Ledger(Table(TABLE)), drop(0), drop(2), drop(4))
    assert found is not None
    assert (found.plan, found.score) == (drop(2), 60.0)
    assert answers == [50.0, 60.0, 20.0]


def test_the_first_seen_of_two_best_plans_wins() -> None:
    for asks in ([drop(1), drop(3)], [[drop(1), drop(3)]], [drop(1), AtLeast(drop(3), 70.0)]):
        found, _ = drive_all(Ledger(Table(TABLE)), *asks)
        assert found is not None
        assert found.plan == drop(1)


def test_the_digits_behind_the_fourth_decide_nothing() -> None:
    table = Table({drop(0): 50.00001, drop(1): 50.00004, drop(2): 50.0001})
    found, answers = drive_all(Ledger(table), drop(0), drop(1))
    assert found is not None
    assert found.plan == drop(0)
    assert answers == [50.0, 50.0]
    found, _ = drive_all(Ledger(table), drop(0), drop(2))
    assert found is not None
    assert found.plan == drop(2)


def test_a_floor_is_reached_by_rounded_points() -> None:
    _, answers = drive_all(Ledger(Table({drop(0): 69.99996})), AtLeast(drop(0), 70.0))
    assert answers == [70.0]


def test_a_search_that_asks_for_nothing_finds_nothing() -> None:
    assert drive_all(Ledger(Table({}))) == (None, [])
    assert drive_all(Ledger(Table({})), []) == (None, [[]])


def test_what_a_splitter_returns_is_handed_on() -> None:
    def split() -> Requests[Plan]:
        yield drop(0)
        return drop(4)

    found, final = drive(split(), Ledger(Table(TABLE)), label=LABEL)
    assert found is not None
    assert (found.plan, final) == (drop(0), drop(4))


@pytest.mark.parametrize("request_of", [lambda plan: plan, lambda plan: [plan], lambda plan: AtLeast(plan, 0.0)])
def test_a_split_ends_with_the_given_plan_or_one_that_has_a_score(request_of: Callable[[Plan], Any]) -> None:
    start = drop(0, 1)
    kept, hoped = (Plan(Removal(lost), start.decode) for lost in ((), (Drop(1),)))

    def split(final: Plan) -> Requests[Plan]:
        yield request_of(kept)
        return final

    table = {kept: 60.0, hoped: 70.0}
    assert [drive_split(split(final), Ledger(Table(table)), start, label=LABEL) for final in (kept, start)] == [kept, start]
    with pytest.raises(PluginError) as caught:
        drive_split(split(hoped), Ledger(Table(table)), start, label=LABEL)
    assert str(caught.value) == (
        f"{LABEL} returned {hoped}, which it did not measure: it must return a plan that it measured, or the one it was given"
    )


@given(st.lists(st.sampled_from(sorted(TABLE, key=str)), min_size=1, max_size=12))
def test_the_best_is_the_first_of_the_highest_and_every_plan_is_measured_once(plans: list[Plan]) -> None:
    table = Table(TABLE)
    ledger = Ledger(table)
    found, answers = drive_all(ledger, *plans)
    assert found is not None
    assert found.plan == max(plans, key=lambda plan: (TABLE[plan], -plans.index(plan)))
    assert answers == [TABLE[plan] for plan in plans]
    assert [plan for plan, _, _ in table.calls] == list(dict.fromkeys(plans))
    assert (ledger.tally.measured, ledger.tally.remembered) == (len(set(plans)), len(plans) - len(set(plans)))


# Asks


def test_a_list_is_answered_by_a_list() -> None:
    _, answers = drive_all(Ledger(Table(TABLE)), [drop(0), drop(1), drop(0)])
    assert answers == [[50.0, 70.0, 50.0]]


def test_a_plan_below_its_floor_is_answered_by_none() -> None:
    for torn in (False, True):
        _, answers = drive_all(Ledger(Table(TABLE, torn=torn)), AtLeast(drop(0), 50.5), AtLeast(drop(1), 70.0))
        assert answers == [None, 70.0]


def test_the_floor_is_handed_to_the_measure_and_plain_plans_have_none() -> None:
    table = Table(TABLE)
    drive_all(Ledger(table), drop(0), AtLeast(drop(1), 12.5))
    assert table.calls == [(drop(0), None, None), (drop(1), 12.5, None)]


def test_a_reading_cut_short_is_remembered_while_its_ceiling_is_below_the_floor() -> None:
    table = Table(TABLE, torn=True)
    ledger = Ledger(table)
    _, answers = drive_all(ledger, AtLeast(drop(0), 80.0), AtLeast(drop(0), 90.0), AtLeast(drop(0), 50.5))
    assert answers == [None, None, None]
    assert len(table.calls) == 1
    assert (ledger.tally.measured, ledger.tally.remembered, ledger.tally.cut_short) == (0, 2, 1)


@pytest.mark.parametrize(("again", "answer"), [(AtLeast(drop(0), 50.0), 50.0), (AtLeast(drop(0), 1.0), 50.0), (drop(0), 50.0)])
def test_a_reading_cut_short_is_measured_on_when_less_is_asked(again: Request, answer: float) -> None:
    table = Table(TABLE, torn=True)
    ledger = Ledger(table)
    _, answers = drive_all(ledger, AtLeast(drop(0), 80.0), again)
    assert answers == [None, answer]
    assert [started for _, _, started in table.calls] == [None, Reading(None, None, (50.0, None), ceiling=50.0)]
    assert (ledger.tally.measured, ledger.tally.remembered, ledger.tally.cut_short) == (1, 0, 1)


def test_a_whole_reading_answers_every_floor_without_measuring() -> None:
    table = Table(TABLE)
    _, answers = drive_all(Ledger(table), drop(0), AtLeast(drop(0), 50.0), AtLeast(drop(0), 50.1))
    assert answers == [50.0, 50.0, None]
    assert len(table.calls) == 1


def test_a_note_is_passed_on_and_answered_by_nothing() -> None:
    notes: list[str] = []
    _, answers = drive_all(Ledger(Table(TABLE)), drop(0), Note("so far so good"), drop(1), note=notes.append)
    assert answers == [50.0, None, 70.0]
    assert notes == ["so far so good"]


# What is likely to come next


class Curious:
    """Measures together, and takes some of what is likely to come next."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen: list[Plan] = []

    def __call__(self, plans: Sequence[Plan], stop: Stop, started: Mapping[Plan, Reading]) -> Iterator[tuple[Plan, Reading]]:
        self.seen += islice(stop.ahead, self.count)
        return one_by_one(Table(TABLE))(plans, stop, started)


def test_as_many_plans_are_looked_ahead_to_as_are_wanted_and_none_is_requested() -> None:
    curious = Curious(2)
    ledger = Ledger(Table(TABLE), together=curious)
    found, answers = drive_all(ledger, AtLeast(drop(4), 10.0, otherwise=map(drop, count(1))), drop(0))
    assert curious.seen == [drop(1), drop(2)]
    assert answers == [20.0, 50.0]
    assert found is not None
    assert found.plan == drop(0)
    assert (ledger.tally.measured, ledger.known(drop(1))) == (2, None)


def test_what_may_not_be_requested_is_not_looked_ahead_to() -> None:
    curious = Curious(9)
    otherwise: Any = ["x", drop(3), Probe(drop(2)), drop(1)]
    problems = {drop(3): ["not this one"]}
    ask = AtLeast(drop(0), 10.0, otherwise=otherwise)
    drive_all(Ledger(Table(TABLE), together=curious), ask, problems=lambda plan: problems.get(plan, []))
    assert curious.seen == [drop(1)]


def test_what_fails_on_looking_ahead_is_the_plugins_fault() -> None:
    ask = AtLeast(drop(0), 10.0, otherwise=map(drop, ["x"]))  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"searcher 'walk' \(pdtrim-walk 1\.0\) failed: TypeError"):
        drive_all(Ledger(Table(TABLE), together=Curious(1)), ask)


# Wrong plugins


@pytest.mark.parametrize("ask", [None, "3", 3.0, (drop(0),), [drop(0), AtLeast(drop(1), 1.0)], AtLeast("x", 1.0)], ids=str)  # type: ignore[arg-type]
def test_what_is_no_ask_is_refused_and_shown(ask: Any) -> None:
    with pytest.raises(PluginError) as caught:
        drive_all(Ledger(Table(TABLE)), ask)
    assert str(caught.value) == (
        f"{LABEL} yielded {shortened(repr(ask), 200)}: it may yield a Plan or a Probe, a list of them, AtLeast(plan, floor), "
        "BestOf(plans, keep) with a tuple of them, or a Note"
    )


@pytest.mark.parametrize("plans", [None, 3, drop(1), "x", iter((drop(0),)), {drop(0): 1}], ids=lambda plans: type(plans).__name__)
def test_the_best_of_what_is_no_tuple_of_plans_is_refused(plans: Any) -> None:
    with pytest.raises(PluginError, match=r"BestOf\(plans, keep\) with a tuple of them"):
        drive_all(Ledger(Table(TABLE)), BestOf(plans, 1))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (AtLeast(drop(0), "x"), "its floor must be a number, not 'x'"),  # type: ignore[arg-type]
        (AtLeast(drop(0), None), "its floor must be a number, not None"),  # type: ignore[arg-type]
        (AtLeast(drop(0), math.nan), "its floor must be a number, not nan"),
        (AtLeast(drop(0), 1.0, "hot"), "its temperature must be a number or None, not 'hot'"),  # type: ignore[arg-type]
        (AtLeast(drop(0), 1.0, otherwise=3), "its otherwise must be plans, not 3"),  # type: ignore[arg-type]
        (AtLeast(drop(0), 1.0, None, 3.0), "its than must be the Score of another plan, as it was sent, or None, not 3.0"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_floor_that_is_none_is_refused_in_one_short_line(ask: AtLeast, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        drive_all(Ledger(Table(TABLE)), ask)
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_known_of_all_plans_is_not_measured_again_and_no_plans_are_none() -> None:
    def together(plans: Sequence[Plan], stop: Stop, started: Mapping[Plan, Reading]) -> Iterator[tuple[Plan, Reading]]:
        assert plans, "there is nothing to measure"
        return ((plan, Table(TABLE)(plan, stop.floor, started.get(plan))) for plan in plans)

    ledger = Ledger(Table(TABLE), together=together)
    _, answers = drive_all(ledger, BestOf((drop(0), drop(1)), 1), BestOf((drop(1), drop(0)), 1), BestOf((), 1), [])
    assert answers == [[50.0, 70.0], [70.0, 50.0], [], []]
    assert ledger.tally.measured == 2


@pytest.mark.parametrize("text", [7, None, b"x", ["x"]], ids=str)
def test_a_note_whose_text_is_none_is_refused(text: Any) -> None:
    with pytest.raises(PluginError) as caught:
        drive_all(Ledger(Table(TABLE)), Note(text))
    assert str(caught.value) == f"{LABEL} yielded a Note of {text!r}: its text must be a str"


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, "1"])
def test_of_several_plans_at_least_one_is_kept(keep: Any) -> None:
    with pytest.raises(PluginError, match="of its plans at least one must be kept"):
        drive_all(Ledger(Table(TABLE)), BestOf((drop(0), drop(1)), keep))


class Halves:
    """Measures plans together: gives up all but the best, after half of the items."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Plan], Stop, dict[Plan, Reading]]] = []

    def __call__(self, plans: Sequence[Plan], stop: Stop, started: Mapping[Plan, Reading]) -> Iterator[tuple[Plan, Reading]]:
        self.calls.append((list(plans), stop, dict(started)))
        ranked = sorted(plans, key=lambda plan: -TABLE[plan])
        for number, plan in enumerate(ranked):
            score = TABLE[plan]
            if stop.keep is not None and number >= stop.keep:
                yield plan, Reading(None, None, (score, None), ceiling=score + 1)
            else:
                yield plan, Reading(score, score / 100, (score, score), slope=1.0)


def never(plan: Plan, floor: float | None, started: Reading | None) -> Reading:
    raise AssertionError


def test_the_best_of_several_have_scores_and_the_others_may_have_none() -> None:
    together, told = Halves(), list[Exchange]()
    ledger = Ledger(never, together=together)
    found, answers = drive_all(ledger, BestOf((drop(0), drop(1), drop(4)), 1), told=told.append)
    assert (found, answers) == (BestPlan(drop(1), found.score if found else 0), [[None, 70.0, None]])  # type: ignore[arg-type]
    assert (ledger.tally.measured, ledger.tally.cut_short) == (1, 2)
    assert [exchange.reading.score for exchange in told] == [None, 70.0, None]


def test_what_is_known_of_several_plans_competes_again_and_is_not_recorded_twice() -> None:
    together, recorded = Halves(), list[Plan]()
    ledger = Ledger(never, together=together, record=lambda plan, reading: recorded.append(plan))
    drive_all(ledger, drop(1), BestOf((drop(0), drop(1)), 1), BestOf((drop(0), drop(1)), 1))
    first, second, third = together.calls
    assert first == ([drop(1)], Stop(), {})
    # The one that was given up goes on from where it was; the other is only what it has to beat.
    assert second[0] == [drop(0), drop(1)]
    assert set(second[2]) == {drop(1)}
    assert set(third[2]) == {drop(0), drop(1)}
    assert recorded == [drop(1), drop(0), drop(0)]
    assert ledger.tally.remembered == 2


def test_a_floor_goes_with_the_score_that_it_was_made_from() -> None:
    together = Halves()
    ledger = Ledger(never, together=together)

    def walk() -> Requests[None]:
        start = yield from requests.measure(drop(0))
        yield from requests.measure(drop(4), at_least=start - 5, than=start)

    drive(walk(), ledger, label=LABEL)
    assert together.calls[1][1] == Stop(45.0, Reading(50.0, 0.5, (50.0, 50.0), slope=1.0))


def raising(error: Exception) -> Requests[None]:
    yield drop(0)
    raise error


def test_a_component_that_raises_is_named() -> None:
    with pytest.raises(PluginError) as caught:
        drive(raising(KeyError("x")), Ledger(Table(TABLE)), label=LABEL)
    assert str(caught.value) == f"{LABEL} failed: KeyError: 'x'"


def test_a_component_that_is_no_generator_is_named() -> None:
    with pytest.raises(PluginError) as caught:
        drive(None, Ledger(Table(TABLE)), label=LABEL)  # type: ignore[arg-type]
    assert str(caught.value) == f"{LABEL} failed: AttributeError: 'NoneType' object has no attribute 'send'"


def test_what_a_component_says_to_the_user_is_left_as_it_is() -> None:
    with pytest.raises(RecipeError) as caught:
        drive(raising(RecipeError("searcher", ["count is too large"])), Ledger(Table(TABLE)), label=LABEL)
    assert caught.value.problems == ("count is too large",)


@pytest.mark.parametrize("ask", [drop(4), [drop(0), drop(4)], AtLeast(drop(4), 1.0)], ids=str)
def test_a_plan_that_may_not_be_asked_for_is_refused_before_it_is_measured(ask: Request) -> None:
    table = Table(TABLE)

    def problems(plan: Plan) -> Iterator[str]:
        if plan == drop(4):
            yield "block 4 stays"

    with pytest.raises(PluginError) as caught:
        drive_all(Ledger(table), ask, problems=problems)
    assert str(caught.value) == f"{LABEL} requested the plan prefill {{4}}, decode {{4}}: block 4 stays"
    assert table.calls == []


def test_an_error_of_the_measure_is_not_blamed_on_the_searcher() -> None:
    with pytest.raises(KeyError):
        drive_all(Ledger(Table({})), drop(0))


# The ledger


def test_readings_are_recorded_before_they_are_used_and_only_when_new() -> None:
    log: list[Any] = []
    ledger = Ledger(
        Table(TABLE, torn=True),
        record=lambda plan, reading: log.append(("record", plan, reading.score)),
        notify=lambda candidate: log.append(("notify", candidate.plan, candidate.remembered)),
    )
    drive_all(ledger, drop(0), drop(0), AtLeast(drop(4), 60.0))
    assert log == [
        ("record", drop(0), 50.0),
        ("notify", drop(0), False),
        ("notify", drop(0), True),
        ("record", drop(4), None),
        ("notify", drop(4), False),
    ]


def test_candidates_are_numbered_and_know_the_best_so_far() -> None:
    seen: list[Candidate] = []
    ledger = Ledger(Table(TABLE, torn=True), notify=seen.append)
    drive_all(ledger, drop(0), drop(1), AtLeast(drop(4), 60.0), drop(2))
    assert [(c.number, c.best, c.reading.score) for c in seen] == [
        (1, 50.0, 50.0),
        (2, 70.0, 70.0),
        (3, 70.0, None),
        (4, 70.0, 60.0),
    ]
    assert all(candidate.seconds >= 0 for candidate in seen)


def test_each_drive_begins_with_no_best() -> None:
    seen: list[Candidate] = []
    ledger = Ledger(Table(TABLE), notify=seen.append)
    drive_all(ledger, drop(1))
    found, _ = drive_all(ledger, drop(4))
    assert found is not None
    assert found.plan == drop(4)
    assert [candidate.best for candidate in seen] == [70.0, 20.0]


def test_readings_of_an_earlier_run_are_not_measured_again() -> None:
    table = Table(TABLE, torn=True)
    known = {drop(0): Reading(49.0, 0.49, (49.0, 49.0), 1.0), drop(1): Reading(None, None, (70.0, None), ceiling=70.0)}
    ledger = Ledger(table, known=known)
    _, answers = drive_all(ledger, drop(0), AtLeast(drop(1), 75.0), AtLeast(drop(1), 65.0))
    assert answers == [49.0, None, 70.0]
    assert table.calls == [(drop(1), 65.0, known[drop(1)])]
    assert (ledger.tally.measured, ledger.tally.remembered) == (1, 2)
    assert known[drop(1)].score is None


def test_known_points_are_those_measured_to_the_end() -> None:
    ledger = Ledger(Table(TABLE, torn=True))
    drive_all(ledger, drop(0), AtLeast(drop(4), 60.0))
    assert ledger.known(drop(0)) == 50.0
    assert ledger.known(drop(4)) is None
    assert ledger.known(drop(1)) is None
    assert ledger.exact(drop(4)) == 20.0
    assert ledger.known(drop(4)) == 20.0


# Errors


def score(items: tuple[float | None, ...], slope: float) -> Score:
    return Score(Reading(1.0, 0.0, items, slope))


def test_the_error_of_a_gain_is_paired_over_items() -> None:
    new, old = score((1.0, 3.0, 2.0, 5.0), slope=10.0), score((0.0, 1.0, 2.0, 1.0), slope=20.0)
    # Differences 1, 2, 0, 4: mean 1.75, squares of the deviations 0.5625 + 0.0625 + 3.0625 + 5.0625 = 8.75,
    # deviation sqrt(8.75 / 3), error of the mean half of it; a unit is worth 15 points.
    assert new.error_of_gain_over(old) == pytest.approx(15 * math.sqrt(8.75 / 3) / 2, rel=1e-12)
    assert old.error_of_gain_over(new) == pytest.approx(new.error_of_gain_over(old), rel=1e-12)


def test_a_slope_that_falls_gives_an_error_all_the_same() -> None:
    new, old = score((1.0, 3.0), slope=-2.0), score((0.0, 0.0), slope=-4.0)
    assert new.error_of_gain_over(old) == pytest.approx(3.0, rel=1e-12)


def test_items_that_one_of_them_lacks_are_left_out() -> None:
    new, old = score((1.0, None, 3.0, 9.0), slope=1.0), score((0.0, 5.0, 0.0, None), slope=1.0)
    assert new.error_of_gain_over(old) == pytest.approx(1.0, rel=1e-12)


def test_the_error_of_points_is_that_of_their_items() -> None:
    assert score((1.0, 2.0, None, 6.0), slope=-3.0).error == pytest.approx(
        3 * statistics.stdev([1, 2, 6]) / math.sqrt(3), rel=1e-12
    )


@pytest.mark.parametrize("values", [[], [5.0]])
def test_fewer_than_two_values_have_no_error(values: list[float]) -> None:
    assert standard_error(values) == 0.0


def test_points_are_a_number_that_knows_its_reading() -> None:
    reading = Reading(62.5, -0.5, (1.0, 0.0), 100.0)
    value = Score(reading)
    assert value == 62.5
    assert value - 60 == 2.5
    assert value.reading is reading


def test_a_probe_is_answered_and_remembered_but_never_the_result() -> None:
    few, whole = Plan.unified(Removal([Drop(1)])), Plan.unified(Removal([Drop(1), Drop(2)]))
    measured: list[Plan] = []

    def measure(plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        measured.append(plan)
        return Reading(90.0 if plan == few else 10.0, 0.5, (0.5,))

    seen: list[float] = []

    def asks() -> Requests[None]:
        seen.append((yield from requests.measure(Probe(few))))
        seen.extend((yield from requests.measure([Probe(few), Probe(whole)])))
        yield whole

    best, _ = drive(asks(), Ledger(measure), label="searcher 'x'", problems=lambda plan: [] if plan == whole else ["too few"])
    assert best is not None
    assert (best.plan, seen, measured) == (whole, [90.0, 90.0, 10.0], [few, whole])


def test_everything_that_was_asked_is_told_with_its_reading_floor_and_temperature() -> None:
    told: list[Exchange] = []
    asks = (drop(0), AtLeast(Probe(drop(1)), 60.0, 5.0), AtLeast(drop(4), 60.0), [drop(2), drop(0)], Note("well"))
    drive_all(Ledger(Table(TABLE, torn=True)), *asks, told=told.append)
    assert [(asked.plan, asked.floor, asked.temperature, asked.may_win) for asked in told] == [
        (drop(0), None, None, True),
        (drop(1), 60.0, 5.0, False),
        (drop(4), 60.0, None, True),
        (drop(2), None, None, True),
        (drop(0), None, None, True),
    ]
    assert [(asked.reading.score, asked.reading.ceiling) for asked in told[1:3]] == [(70.0, 100.0), (None, 20.0)]
