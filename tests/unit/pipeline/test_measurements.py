"""The bench of a run: each plan is measured once, the journal has it, and what searchers and splitters give back is checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Drop, Merge, PdtrimError, Plan, Removal
from pdtrim_core.api import BlockModel, CostModel, Scores
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity import dense_answers
from pdtrim_core.fidelity.dense_answers import answers, beginnings
from pdtrim_core.fidelity.measure import Subject, measure
from pdtrim_core.pipeline import dense_beginnings
from pdtrim_core.pipeline.measured_model import ModuleSet
from pdtrim_core.pipeline.measurements import Bench, open_bench, rows_of
from pdtrim_core.pipeline.run_inputs import prepare
from pdtrim_core.pipeline.run_keys import dense_code
from pdtrim_core.results.run_folder import measured_in
from pdtrim_core.search.space import search_space, two_sets
from pdtrim_core.testing import tiny_llama
from pdtrim_plugins.objectives import Margin
from tests.unit.pipeline.runs import NOTHING, Begin, bench_of, flattered

MERGE = Merge(keep=2, drop=1)
DROPS = Plan.unified(Removal([Drop(1), Drop(4)]))
SCORES = Scores(tuple(number / 10 for number in range(6)))
COSTS = CostModel(6, tiny_llama().sizes)
SPACE = search_space(SCORES, 2, two_sets(SCORES, 2))
CLOSE = 1e-5


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


def test_items_get_the_dense_models_answers_when_they_are_first_measured(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(model: BlockModel, prompts: list[tuple[int, ...]], length: int, **options: Any) -> Any:
        asked.append(len(prompts))
        return beginnings(model, prompts, length, **options)

    monkeypatch.setattr(dense_beginnings, "beginnings", noted)
    context = begin(objective={"use": "kl", "answer_tokens": 5}, search={"fresh": 2}, prune={"blocks": 2})
    inputs = prepare(context)
    bench = open_bench(context, inputs, NOTHING)
    assert asked == [6]
    (row,) = bench.rows({"two drops": DROPS})
    assert bench.fresh is not None
    assert asked == [6, 3, 2]
    staged, dense = StagedModel(PrefixCache(tiny_llama()), DROPS), TwoPhaseModel(tiny_llama(), Plan())
    for mean, items in (
        (row.held_out.mean if row.held_out else None, inputs.calibration.held_out),
        (bench.fresh.exact(DROPS).reading.mean, inputs.calibration.fresh),
    ):
        answered = [replace(item, dense_answer=tuple(dense.generate(item.prompts[0], 5))) for item in items]
        weights = [len(item.tokens) - len(item.prompts[0]) + len(item.dense_answer) for item in answered]
        values = staged.divergences(answered, "both")
        together = sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
        assert mean == pytest.approx(together, rel=1e-4)


def test_the_dense_model_answers_held_out_items_once_for_the_objective_and_for_fidelity(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A greedy answer begins as a shorter one does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: list[tuple[int, int]] = []

    def noted(pair: TwoPhaseModel, prompts: list[tuple[int, ...]], length: int, *rest: Any) -> list[list[int]]:
        if pair.plan == Plan():
            asked.append((len(prompts), length))
        return answers(pair, prompts, length, *rest)

    monkeypatch.setattr(dense_answers, "answers", noted)
    context = begin(objective={"use": "kl", "answer_tokens": 5}, evaluation={"threads": 1, "answer_tokens": 9})
    bench, inputs = bench_of(context)
    bench.rows({"two drops": DROPS})
    measure(Subject(inputs.model, DROPS), inputs.calibration.held_out, length=9, code=dense_code(inputs.model))
    assert asked == [(6, 5), (3, 9)]


def test_values_along_other_answers_are_measured_again(begin: Begin) -> None:
    """In each set of items: what the journal's values depend on has that set's answers."""
    keys = {}
    for name, length in (("five", 5), ("four", 4)):
        context = begin(name, objective={"use": "kl", "answer_tokens": length})
        bench, _ = bench_of(context)
        bench.rows({"two drops": DROPS})
        lines = [json.loads(line) for line in (context.folder.path / "journal.jsonl").read_text().splitlines()]
        keys[name] = {line["by"] for line in lines}
    assert len(keys["five"]) == len(keys["four"]) == 2
    assert keys["five"].isdisjoint(keys["four"])


@pytest.mark.parametrize(("objective", "early"), [("margin", True), ("kl", False)])
def test_items_that_cannot_be_measured_are_refused_as_early_as_their_answers_are_there(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, objective: str, *, early: bool
) -> None:
    context = begin(objective=objective)
    inputs = prepare(context)
    bad = inputs.calibration.held_out[0].name
    monkeypatch.setattr(
        type(context.recipe.objective), "problems", lambda _, items: [f"not {bad}" for item in items if item.name == bad]
    )
    refused = pytest.raises(PdtrimError, match=f"cannot measure the held-out items: not {bad}")
    if early:
        with refused:
            open_bench(context, inputs, NOTHING)
        return
    bench = open_bench(context, inputs, NOTHING)
    with refused:
        bench.rows({"dense": Plan()})


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


def test_plans_that_are_worse_or_the_same_are_not_remarked_on(begin: Begin) -> None:
    context = begin(objective={"use": "kl", "along": "right"}, calibration={"samples": 12, "held_out": 8})
    bench, _ = bench_of(context)
    bench.dense()
    rows_of(bench, DROPS, Plan(), None)
    assert context.events.notes == []
