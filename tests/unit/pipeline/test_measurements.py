"""The bench of a run: each plan is measured once, the journal has it, and what searchers and splitters give back is checked."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, ClassVar

import pytest

from pdtrim_core import Drop, KvOnly, Merge, PdtrimError, Plan, PluginError, Removal
from pdtrim_core.api import CostModel, Request, Result, Scores, Searcher, SearchSpace, StageSplitter
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline import measurements
from pdtrim_core.pipeline.measurements import Bench, ModuleSet, open_bench, rows_of
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs, prepare
from pdtrim_core.pipeline.run_keys import keys_of
from pdtrim_core.results.run_folder import measured_in
from pdtrim_core.search.space import search_space, two_sets
from pdtrim_core.testing import tiny_llama
from pdtrim_plugins.objectives import Margin
from pdtrim_plugins.searchers import Beam, Sequential
from tests.unit.pipeline.runs import Begin

MERGE = Merge(keep=2, drop=1)
DROPS = Plan.unified(Removal([Drop(1), Drop(4)]))
SCORES = Scores(tuple(number / 10 for number in range(6)))
COSTS = CostModel(6, tiny_llama().sizes)
SPACE = search_space(SCORES, 2, two_sets(SCORES, 2))
CLOSE = 1e-5
NOTHING = ModuleSet({}, "")


def bench_of(context: RunContext, module_set: ModuleSet = NOTHING) -> tuple[Bench, RunInputs]:
    inputs = prepare(context)
    return Bench(context, inputs, module_set), inputs


def test_a_row_is_the_objectives_mean_over_each_set_of_items(begin: Begin) -> None:
    bench, inputs = bench_of(begin())
    (row,) = bench.rows({"two drops": DROPS})
    assert row.name == "two drops"
    assert row.held_out is not None
    staged = StagedModel(PrefixCache(tiny_llama()), DROPS)
    for value, items in ((row.calibration, inputs.calibration.items), (row.held_out, inputs.calibration.held_out)):
        values = Margin().item_values(staged, items)
        assert value.mean == pytest.approx(sum(values) / len(values), rel=CLOSE)
        assert value.items == len(items)


def test_without_held_out_items_a_row_has_one_value_and_costs_half(begin: Begin) -> None:
    bench, _ = bench_of(begin(calibration={"samples": 6, "held_out": 0}))
    (row,) = bench.rows({"dense": Plan()})
    assert row.held_out is None
    with_both, _ = bench_of(begin("with both"))
    assert (bench.measurements(3), with_both.measurements(3)) == (3, 6)


def test_a_plan_is_measured_once_and_the_journal_has_it(begin: Begin) -> None:
    context = begin()
    bench, _ = bench_of(context)
    assert bench.rows({"a": DROPS}) != bench.rows({"b": Plan()})
    bench.rows({"again": DROPS})
    assert (bench.ledger.tally.measured, bench.ledger.tally.remembered) == (2, 1)
    assert {part: set(found) for part, found in measured_in(context.folder.path).items()} == {
        "calibration": {DROPS, Plan()},
        "held-out": {DROPS, Plan()},
    }


def test_merges_that_are_not_trained_yet_have_a_part_of_their_own(begin: Begin) -> None:
    context, model, plan = begin(), tiny_llama(), Plan.unified(Removal([MERGE]))
    inputs = prepare(context)
    untrained = Bench(context, inputs, ModuleSet({MERGE: model.blocks[2]}, "digest", trained=False))
    trained = Bench(context, inputs, ModuleSet({MERGE: model.blocks[4]}, "digest"))
    assert untrained.ledger.exact(plan) != trained.ledger.exact(plan)
    assert set(measured_in(context.folder.path)) == {"untrained", "calibration"}


def test_the_dense_model_is_measured_in_a_step_of_its_own(begin: Begin) -> None:
    context = begin()
    bench = open_bench(context, prepare(context), NOTHING)
    assert "measure the dense model" in context.events.seconds
    assert bench.ledger.known(Plan()) is not None


def test_much_memory_for_hidden_states_is_told_unless_the_recipe_gives_it(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = begin("little")
    bench_of(quiet)[0].dense()
    monkeypatch.setattr("pdtrim_core.pipeline.measurements.MUCH_MEMORY", 0)
    told, given = begin("told"), begin("given", evaluation={"threads": 1, "cache_budget": 2**30})
    for context in (told, given):
        bench_of(context)[0].dense()
    assert [len(context.events.notes) for context in (quiet, told, given)] == [0, 1, 0]
    assert told.events.notes[0].startswith("what is kept of the items between measurements will take up to 0.0 GB: ")


def test_items_that_the_objective_cannot_measure_are_named(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Margin, "problems", lambda _self, items: ["an item has no choices"] if len(items) == 3 else [])
    with pytest.raises(PdtrimError) as caught:
        bench_of(begin())
    assert str(caught.value) == "objective 'margin' cannot measure the held-out items: an item has no choices"


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
    found = bench.search(SPACE)
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
    found = bench.search(SPACE)
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
    assert bench.search(SPACE) == Plan.unified(SPACE.first)
    assert any("the first removal stays" in note and "search.caution = 1000" in note for note in context.events.notes)
    sure, context = with_parts(begin, monkeypatch, plans=PLANS, search={}, calibration=calibration, name="sure")
    assert sure.search(SPACE) != Plan.unified(SPACE.first)
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
    assert bench.search(SPACE) == Plan.unified(SPACE.first)
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
    assert bench.search(SPACE) == Plan.unified(Removal([Drop(0), Drop(block)]))
    assert any("loses blocks that the searcher never removes" in note for note in context.events.notes)


def test_without_fresh_items_the_searched_ones_decide_and_a_note_says_so(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=PLANS, search={"fresh": 0})
    bench.search(SPACE)
    assert "fresh" not in measured_in(context.folder.path)
    assert any("since there are no fresh ones" in note for note in context.events.notes)


def test_a_search_that_measured_one_plan_has_nothing_to_decide(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=(Plan.unified(SPACE.first),), search={})
    assert bench.search(SPACE) == Plan.unified(SPACE.first)
    assert "fresh" not in measured_in(context.folder.path)


def test_a_second_search_is_the_one_that_counts(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch)
    bench.search(SPACE)
    bench.search(SPACE)
    assert len(context.events.search) == 1


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.25, "1.2 s = about 9 s"), (0.004, "4 ms = about 0 s"), (60.0, "60.0 s = about 7 min 0 s")]
)
def test_a_search_says_how_long_it_may_take_once_it_has_measured_one_plan(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, seconds: float, words: str
) -> None:
    bench, context = with_parts(begin, monkeypatch)
    said: list[str] = []
    now = iter(range(10**6))
    monkeypatch.setattr(context.events, "preview", said.append)
    monkeypatch.setattr("pdtrim_core.search.driver.time.perf_counter", lambda: seconds * next(now))
    bench.dense()
    assert said == []  # which takes no time: it is the dense model that others are compared with
    bench.search(SPACE)
    assert said == [f"search: at most 7 measurements x {words}"]


def test_a_search_that_asks_for_nothing_is_named(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=())
    with pytest.raises(PluginError) as caught:
        bench.search(SPACE)
    assert str(caught.value) == f"{context.host.label_of(Asks())} requested no plan"


def clock_of(bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let each plan that is measured take so many seconds."""
    monkeypatch.setattr(measurements, "monotonic", lambda: seconds * (bench.ledger.tally.measured + bench.ledger.tally.cut_short))


def test_a_search_ends_with_its_minutes_and_with_the_best_that_it_has(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, plans=PLANS, search={"mode": "exact", "minutes": 1.5})
    clock_of(bench, monkeypatch, 30.0)
    found = bench.search(SPACE)
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
    found = bench.search(SPACE)
    assert found.decode.blocks_removed == SPACE.count
    assert not {Drop(0), Drop(5)} & set(found.decode)
    assert bench.ledger.known(found) is not None
    assert str(found.decode).strip("{}") in [step.decode for step in context.events.search if step.may_win]
    assert any(note.startswith(f"search: ended after search.minutes = {minutes:g}") for note in context.events.notes)


def test_what_a_search_with_a_limit_says_beforehand_is_no_longer_than_that(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, context = with_parts(begin, monkeypatch, search={"minutes": 1e-6})
    said: list[str] = []
    monkeypatch.setattr(context.events, "preview", said.append)
    bench.dense()
    bench.search(SPACE)
    assert said[0].endswith(", ended after 1e-06 min")


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_a_split_keeps_in_prefill_what_the_splitter_says_and_truncates_it(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, first_token: str
) -> None:
    kept = Plan(Removal([Drop(4)]), DROPS.decode)
    evaluation = {"threads": 1, "first_token": first_token}
    bench, _ = with_parts(begin, monkeypatch, tried=kept, given=kept, evaluation=evaluation)
    expected = kept.truncated_prefill(6) if first_token == "decode" else kept
    assert bench.split(DROPS, COSTS) == expected
    assert (KvOnly(5) in expected.prefill) == (first_token == "decode")


def test_a_splitter_may_not_change_decode(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Plan.unified(Removal([Drop(1), Drop(3)]))
    bench, context = with_parts(begin, monkeypatch, given=other)
    label = context.host.label_of(Gives())
    with pytest.raises(PluginError) as caught:
        bench.split(DROPS, COSTS)
    assert str(caught.value) == f"{label} returned {other}: it must return a plan with the decode that it was given"
    monkeypatch.setattr(Gives, "tried", other)
    with pytest.raises(PluginError) as caught:
        bench.split(DROPS, COSTS)
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
        bench.split(DROPS, COSTS)
    assert str(caught.value) == (
        f"{label} returned {hoped}, which it did not measure: it must return a plan that it measured, or the one it was given"
    )


def test_a_splitter_may_return_what_it_was_given_unmeasured(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, _ = with_parts(begin, monkeypatch, tried=Plan(Removal([Drop(4)]), DROPS.decode), given=DROPS)
    assert bench.split(DROPS, COSTS) == DROPS.truncated_prefill(6)


@pytest.mark.parametrize("needs_model", [True, False])
def test_a_splitter_that_asks_for_the_model_gets_it(begin: Begin, monkeypatch: pytest.MonkeyPatch, needs_model: bool) -> None:
    monkeypatch.setattr(Gives, "needs_model", needs_model)
    bench, context = with_parts(begin, monkeypatch)
    bench.split(DROPS, COSTS)
    assert Gives.told is not None
    assert Gives.told.sizes == COSTS.sizes
    assert (Gives.told.model is None) != needs_model
    if needs_model:
        assert Gives.told.model is context.cache.latest("model", keys_of(context.recipe).model, tiny_llama)


def test_a_gain_is_what_it_brought_to_keep_one_element_in_prefill(begin: Begin) -> None:
    bench, _ = bench_of(begin())
    kept = Plan(Removal([Drop(1)]), DROPS.decode)
    assert bench.gains(DROPS, kept) == ()  # nothing was measured yet
    before, after = (bench.ledger.exact(plan) for plan in (DROPS, kept))
    (gain,) = bench.gains(DROPS, kept)
    assert (gain.element, gain.gain, gain.kept_in_prefill) == ("4", round(after - before, 4), True)
    assert gain.error == after.error_of_gain_over(before)
    (gain,) = bench.gains(DROPS, DROPS)
    assert not gain.kept_in_prefill


def test_a_replaced_model_is_measured_beside_the_dense_one(begin: Begin) -> None:
    context, other = begin(), tiny_llama(seed=7)
    bench, inputs = bench_of(context)
    rows = rows_of(bench, Plan(), Plan(), other)
    assert [row.name for row in rows] == ["dense", "unified"]
    for row, model in zip(rows, (inputs.model, other), strict=True):
        values = Margin().item_values(StagedModel(PrefixCache(model), Plan()), inputs.calibration.items)
        assert row.calibration.mean == pytest.approx(sum(values) / len(values), rel=CLOSE)
    assert set(measured_in(context.folder.path)) == {"calibration", "held-out", "replaced calibration", "replaced held-out"}


def test_a_table_has_the_dense_model_decodes_removal_in_both_stages_and_the_plan(begin: Begin) -> None:
    bench, _ = bench_of(begin())
    plan = Plan(Removal([Drop(1)]), DROPS.decode)
    rows = rows_of(bench, DROPS, plan, None)
    assert rows == bench.rows({"dense": Plan(), "unified": DROPS, "staged": plan})
    assert len({row.calibration.mean for row in rows}) == 3


def flattered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every removal count as a gain, more of one on every other item."""

    def item_values(_self: Margin, staged: Any, items: Sequence[Any]) -> list[float]:
        return [len(staged.plan.decode) * (0.1 + 0.01 * (len(item.name) % 2)) + 0.2 for item in items]

    monkeypatch.setattr(Margin, "item_values", item_values)


def test_a_plan_that_seems_better_than_the_dense_model_is_remarked_on(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    flattered(monkeypatch)
    context = begin(calibration={"samples": 12, "held_out": 8})
    bench, _ = bench_of(context)
    bench.dense()
    rows_of(bench, DROPS, DROPS, None)
    assert [note.partition(" by ")[0] for note in context.events.notes] == ["unified beats the dense model"] * 2
    assert [items in note for items, note in zip(("calibration", "held-out"), context.events.notes, strict=True)] == [True, True]


def test_a_replaced_model_is_held_against_the_dense_one(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    context = begin(calibration={"samples": 12, "held_out": 0})
    bench, inputs = bench_of(context)
    dense, replaced = inputs.model, tiny_llama(seed=7)
    better = dict(zip((id(dense), id(replaced)), (0.2, 0.4), strict=True))
    monkeypatch.setattr(Margin, "item_values", lambda _self, staged, items: [better[id(staged._model)]] * len(items))
    rows_of(bench, Plan(), Plan(), replaced)
    (note,) = context.events.notes
    assert note.startswith("unified beats the dense model by ")
    rows_of(bench, Plan(), Plan(), dense)
    assert context.events.notes == [note]


def test_what_a_search_finds_better_than_the_dense_model_is_remarked_on(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    flattered(monkeypatch)
    context = begin(calibration={"samples": 12, "held_out": 0})
    bench, _ = bench_of(context)
    bench.dense()
    found = bench.search(SPACE)
    (note,) = [note for note in context.events.notes if "dense model" in note]
    assert note.startswith("the search's result beats the dense model by ")
    rows_of(bench, found, found, None)
    assert [note for note in context.events.notes if "dense model" in note] == [note]


def test_plans_that_are_worse_or_the_same_are_not_remarked_on(begin: Begin) -> None:
    context = begin(objective={"use": "kl", "along": "right"}, calibration={"samples": 12, "held_out": 8})
    bench, _ = bench_of(context)
    bench.dense()
    rows_of(bench, DROPS, Plan(), None)
    assert context.events.notes == []
