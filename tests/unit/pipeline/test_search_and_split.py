"""Searchers and splitters are driven on a bench: what they give back is checked, the last word falls on fresh items."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, ClassVar

import pytest

from pdtrim_core import Drop, KvOnly, Plan, PluginError, Removal
from pdtrim_core.api import CostModel, Request, Result, Scores, Searcher, SearchSpace, StageSplitter
from pdtrim_core.pipeline import search_and_split
from pdtrim_core.pipeline.measurements import Bench, rows_of
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_keys import keys_of
from pdtrim_core.pipeline.search_and_split import search, split
from pdtrim_core.results.run_folder import measured_in
from pdtrim_core.search.space import search_space, two_sets
from pdtrim_core.testing import tiny_llama
from pdtrim_plugins.objectives import Margin
from pdtrim_plugins.searchers import Beam, Sequential
from tests.unit.pipeline.runs import Begin, bench_of, flattered

SCORES = Scores(tuple(number / 10 for number in range(6)))
COSTS = CostModel(6, tiny_llama().sizes)
SPACE = search_space(SCORES, 2, two_sets(SCORES, 2))
DROPS = Plan.unified(Removal([Drop(1), Drop(4)]))


class Asks(Searcher):
    """Asks for what a test says."""

    name = "asks"
    plans: ClassVar[tuple[Plan, ...]] = ()

    def search(self, space: SearchSpace, rng: Random) -> Generator[Request, Result, None]:
        for plan in self.plans:
            asked: Request = plan
            yield asked

    def steps(self, space: SearchSpace) -> int:
        return 7


class Gives(StageSplitter):
    """Tries a plan, and gives back another, as a test says."""

    name = "gives"
    tried: ClassVar[Plan]
    given: ClassVar[Any]
    told: ClassVar[CostModel | None] = None

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Generator[Request, Result, Plan]:
        type(self).told = costs
        yield self.tried
        given: Plan = self.given
        return given


def with_parts(begin: Begin, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Bench, RunContext]:
    """Return a bench whose searcher asks for some plans, and whose splitter tries one and gives one."""
    given = {"plans": (DROPS,), "tried": DROPS, "given": DROPS, "evaluation": {"threads": 1}, **changes}
    monkeypatch.setattr(Asks, "plans", given["plans"])
    for name in ("tried", "given"):
        monkeypatch.setattr(Gives, name, given[name], raising=False)
    context = begin(
        given.get("name", "run"),
        evaluation=given["evaluation"],
        search=given.get("search", {"mode": "exact"}),
        **({"calibration": given["calibration"]} if "calibration" in given else {}),
    )
    context = replace(context, recipe=replace(context.recipe, searcher=Asks(), splitter=Gives()))
    return bench_of(context)[0], context


def test_the_best_plan_of_a_search_is_what_decode_loses(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = tuple(Plan.unified(Removal([Drop(0), Drop(block)])) for block in (1, 2, 3, 4, 5))
    bench, context = with_parts(begin, monkeypatch, plans=plans)
    found = search(context, bench, SPACE)
    scores = {plan: bench.ledger.exact(plan) for plan in plans}
    assert scores[found] == max(scores.values())
    assert [step.decode for step in context.events.search] == [f"0, {block}" for block in (1, 2, 3, 4, 5)]


PLANS = tuple(Plan.unified(Removal([Drop(0), Drop(block)])) for block in (1, 2, 3, 4, 5))


def fresh_scores(bench: Bench, context: RunContext, plans: Iterable[Plan]) -> dict[Plan, float]:
    """Return the scores of plans on the fresh items, as the journal has them."""
    measured = measured_in(context.folder.path)["fresh"]
    return {plan: measured[plan].score or 0.0 for plan in plans if plan in measured}


def test_the_last_word_between_finalists_falls_on_fresh_items(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=PLANS, search={"finalists": 3, "caution": 0.0})
    found = search(context, bench, SPACE)
    start = Plan.unified(SPACE.first)
    scores = {plan: bench.ledger.exact(plan) for plan in PLANS}
    finalists = sorted((plan for plan in PLANS if plan != start), key=lambda plan: -scores[plan])[:3]
    again = fresh_scores(bench, context, [start, *finalists])
    assert set(again) == set(measured_in(context.folder.path)["fresh"]) == {start, *finalists}
    assert found == max(again, key=again.__getitem__)
    # What decided is not a step of the search: it has other items.
    assert len(context.events.search) == len(PLANS)


def test_the_first_removal_stays_unless_another_is_surely_better(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    def item_values(_self: Margin, staged: Any, items: Sequence[Any]) -> list[float]:
        """Others are better than the first removal, by an amount that differs between items."""
        gain = 0.0 if staged.plan.decode == SPACE.first else 0.1
        return [0.3 + gain * (1 + len(item.name) % 3 + number % 2) for number, item in enumerate(items)]

    monkeypatch.setattr(Margin, "item_values", item_values)
    calibration = {"samples": 12, "held_out": 0}
    bench, context = with_parts(begin, monkeypatch, plans=PLANS, search={"caution": 1000.0}, calibration=calibration)
    assert search(context, bench, SPACE) == Plan.unified(SPACE.first)
    assert any("the first removal stays" in note and "search.caution = 1000" in note for note in context.events.notes)
    sure, context = with_parts(begin, monkeypatch, plans=PLANS, search={}, calibration=calibration, name="sure")
    assert search(context, sure, SPACE) != Plan.unified(SPACE.first)
    assert any("beats the first removal by" in note and "6 fresh items" in note for note in context.events.notes)


def test_where_no_finalist_is_better_on_fresh_items_a_note_says_that_the_first_removal_stays(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def item_values(_self: Margin, staged: Any, items: Sequence[Any]) -> list[float]:
        """Others are better than the first removal on the items of the search alone."""
        gain = 0.0 if staged.plan.decode == SPACE.first else 0.2 if any(item in searched for item in items) else -0.2
        return [0.5 + gain for _ in items]

    monkeypatch.setattr(Margin, "item_values", item_values)
    bench, context = with_parts(begin, monkeypatch, plans=PLANS, search={})
    searched = set(bench._inputs.calibration.items)
    assert search(context, bench, SPACE) == Plan.unified(SPACE.first)
    assert "search: the first removal stays: no finalist (of 4) beats it on 3 fresh items" in context.events.notes


@pytest.mark.parametrize("block", [2, 3])
def test_a_first_removal_that_the_searcher_would_never_ask_for_is_not_taken(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """As with blocks that `protect_last` protects: it is the best by far, and still not the result."""

    def item_values(_self: Margin, staged: Any, items: Sequence[Any]) -> list[float]:
        gain = 0.4 if staged.plan.decode == SPACE.first else 0.1 if Drop(block) in staged.plan.decode else 0.0
        return [0.5 + gain for _ in items]

    monkeypatch.setattr(Margin, "item_values", item_values)
    assert Drop(5) in SPACE.first
    plans = tuple(plan for plan in PLANS if Drop(5) not in plan.decode)
    bench, context = with_parts(begin, monkeypatch, plans=plans, search={})
    assert search(context, bench, SPACE) == Plan.unified(Removal([Drop(0), Drop(block)]))
    assert any("loses blocks that the searcher never removes" in note for note in context.events.notes)


def test_without_fresh_items_the_searched_ones_decide_and_a_note_says_so(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=PLANS, search={"fresh": 0})
    search(context, bench, SPACE)
    assert "fresh" not in measured_in(context.folder.path)
    assert any("since there are no fresh ones" in note for note in context.events.notes)


def test_a_search_that_measured_one_plan_has_nothing_to_decide(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=(Plan.unified(SPACE.first),), search={})
    assert search(context, bench, SPACE) == Plan.unified(SPACE.first)
    assert "fresh" not in measured_in(context.folder.path)


def test_a_second_search_is_the_one_that_counts(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch)
    search(context, bench, SPACE)
    search(context, bench, SPACE)
    assert len(context.events.search) == 1


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.25, "1.2 s = about 9 s"), (0.004, "4 ms = about 0 s"), (60.0, "60.0 s = about 7 min 0 s")]
)
def test_a_search_says_how_long_it_may_take_by_its_second_measurement(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, seconds: float, words: str
) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=PLANS)
    assert said_by(context, bench, monkeypatch, [1000.0 * seconds, seconds, seconds, seconds, seconds]) == [
        f"search: at most 7 measurements x {words}"
    ]


def test_a_search_that_asks_for_several_plans_together_tells_what_each_of_them_took(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def together(self: Asks, _space: SearchSpace, _rng: Random) -> Generator[Request, Result, None]:
        yield self.plans[0]
        yield list(self.plans[1:])

    monkeypatch.setattr(Asks, "search", together)
    bench, context = with_parts(begin, monkeypatch, plans=PLANS)
    assert len(PLANS) == 5
    assert said_by(context, bench, monkeypatch, [9.0, 3.0, 3.0, 3.0, 3.0]) == [
        "search: at most 7 measurements x 3.0 s = about 21 s"
    ]


def test_a_search_that_has_measured_once_says_nothing_of_its_length(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch)
    assert said_by(context, bench, monkeypatch, [1.0]) == []


def test_a_search_with_a_limit_says_that_it_takes_no_longer(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=PLANS, search={"minutes": 1.0})
    assert said_by(context, bench, monkeypatch, [10.0] * 5) == [
        "search: at most 7 measurements x 10.0 s = about 1 min 10 s, ended after 1 min"
    ]


def said_by(context: RunContext, bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> list[str]:
    """Return what a search says beforehand, whose plans that are measured take so many seconds one after the other."""
    said: list[str] = []
    before = bench.ledger.tally.measured + bench.ledger.tally.cut_short

    def now() -> float:
        return sum(seconds[: bench.ledger.tally.measured + bench.ledger.tally.cut_short - before])

    monkeypatch.setattr(context.events, "preview", said.append)
    monkeypatch.setattr(search_and_split, "perf_counter", now)
    search(context, bench, SPACE)
    return said


def test_a_search_that_asks_for_nothing_is_named(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=())
    with pytest.raises(PluginError) as caught:
        search(context, bench, SPACE)
    assert str(caught.value) == f"{context.host.label_of(Asks())} requested no plan"


def clock_of(bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let each plan that is measured take so many seconds."""
    monkeypatch.setattr(
        search_and_split, "monotonic", lambda: seconds * (bench.ledger.tally.measured + bench.ledger.tally.cut_short)
    )


def test_a_search_ends_with_its_minutes_and_with_the_best_that_it_has(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=PLANS, search={"mode": "exact", "minutes": 1.5})
    clock_of(bench, monkeypatch, 30.0)
    found = search(context, bench, SPACE)
    scores = {plan: bench.ledger.known(plan) for plan in PLANS}
    assert [score is None for score in scores.values()] == [False, False, False, True, True]
    assert scores[found] == max(score for score in scores.values() if score is not None)
    (note,) = context.events.notes
    assert note == (
        "search: ended after search.minutes = 1.5, with 3 plans measured; the best of them that is of full size counts"
    )


@pytest.mark.parametrize("minutes", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("searcher", [Sequential(), Beam()], ids=lambda one: one.name)
def test_a_search_that_removes_one_block_after_the_other_has_a_plan_at_all_times(
    searcher: Searcher, minutes: float, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, context = with_parts(begin, monkeypatch, search={"minutes": minutes})
    context = replace(context, recipe=replace(context.recipe, searcher=searcher))
    bench, _ = bench_of(context)
    clock_of(bench, monkeypatch, 20.0)
    found = search(context, bench, SPACE)
    assert found.decode.blocks_removed == SPACE.count
    assert not {Drop(0), Drop(5)} & set(found.decode)
    assert bench.ledger.known(found) is not None
    assert str(found.decode).strip("{}") in [step.decode for step in context.events.search if step.may_win]
    assert any(note.startswith(f"search: ended after search.minutes = {minutes:g}") for note in context.events.notes)


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_a_split_keeps_in_prefill_what_the_splitter_says_and_truncates_it(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, first_token: str
) -> None:
    kept = Plan(Removal([Drop(4)]), DROPS.decode)
    evaluation = {"threads": 1, "first_token": first_token}
    bench, context = with_parts(begin, monkeypatch, tried=kept, given=kept, evaluation=evaluation)
    expected = kept.truncated_prefill(6) if first_token == "decode" else kept
    assert split(context, bench, DROPS, COSTS) == expected
    assert (KvOnly(5) in expected.prefill) == (first_token == "decode")


def test_a_splitter_may_not_change_decode(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Plan.unified(Removal([Drop(1), Drop(3)]))
    bench, context = with_parts(begin, monkeypatch, given=other)
    label = context.host.label_of(Gives())
    with pytest.raises(PluginError) as caught:
        split(context, bench, DROPS, COSTS)
    assert str(caught.value) == f"{label} returned {other}: it must return a plan with the decode that it was given"
    monkeypatch.setattr(Gives, "tried", other)
    with pytest.raises(PluginError) as caught:
        split(context, bench, DROPS, COSTS)
    assert str(caught.value) == f"{label} requested the plan {other}: a splitter may change prefill only"


@pytest.mark.parametrize("lost", [(), (1,)])
def test_a_splitter_may_not_return_what_it_did_not_measure(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, lost: tuple[int, ...]
) -> None:
    hoped = Plan(Removal(map(Drop, lost)), DROPS.decode)
    bench, context = with_parts(begin, monkeypatch, given=hoped)
    # That somebody else knows its score, such as an earlier run, does not count.
    bench.ledger.exact(hoped)
    label = context.host.label_of(Gives())
    with pytest.raises(PluginError) as caught:
        split(context, bench, DROPS, COSTS)
    assert str(caught.value) == (
        f"{label} returned {hoped}, which it did not measure: it must return a plan that it measured, or the one it was given"
    )


def test_a_splitter_may_return_what_it_was_given_unmeasured(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, tried=Plan(Removal([Drop(4)]), DROPS.decode), given=DROPS)
    assert split(context, bench, DROPS, COSTS) == DROPS.truncated_prefill(6)


@pytest.mark.parametrize("needs_model", [True, False])
def test_a_splitter_that_asks_for_the_model_gets_it(begin: Begin, monkeypatch: pytest.MonkeyPatch, needs_model: bool) -> None:
    monkeypatch.setattr(Gives, "needs_model", needs_model)
    bench, context = with_parts(begin, monkeypatch)
    split(context, bench, DROPS, COSTS)
    assert Gives.told is not None
    assert Gives.told.sizes == COSTS.sizes
    assert (Gives.told.model is None) != needs_model
    if needs_model:
        assert Gives.told.model is context.cache.latest("model", keys_of(context.recipe).model, tiny_llama)


def test_what_a_search_finds_better_than_the_dense_model_is_remarked_on(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    flattered(monkeypatch)
    context = begin(calibration={"samples": 12, "held_out": 0})
    bench, _ = bench_of(context)
    bench.dense()
    found = search(context, bench, SPACE)
    (note,) = [note for note in context.events.notes if "dense model" in note]
    assert note.startswith("the search's result beats the dense model by ")
    rows_of(bench, found, found, None)
    assert [note for note in context.events.notes if "dense model" in note] == [note]
