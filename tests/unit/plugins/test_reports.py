"""The table at the end of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pdtrim_core import Drop, Element, Outcome, Plan, Removal, SavedPlan, Shrink, draw_diagram
from pdtrim_core.results.outcome import Cost, Gain, Row, Value
from pdtrim_core.testing.contracts import small_run
from pdtrim_plugins.reports.table import Table, columns

if TYPE_CHECKING:
    from pathlib import Path


def outcome_with(**changes: Any) -> Outcome:
    """Return the outcome of the small run with some of it replaced."""
    return replace(small_run()[0], **changes)


def parts(outcome: Outcome, out: Path) -> list[str]:
    return Table().report(outcome, out).split("\n\n")


def test_the_headline_counts_the_blocks(tmp_path: Path) -> None:
    outcome = outcome_with(model="some/model", gains=())
    assert parts(outcome, tmp_path)[0] == "some/model: decode loses 2 of 6 blocks"


def test_the_headline_counts_what_prefill_keeps(tmp_path: Path) -> None:
    outcome = outcome_with(gains=(Gain("1", 4.0, 0.5, kept_in_prefill=True), Gain("3", 1.0, 0.5, kept_in_prefill=False)))
    assert parts(outcome, tmp_path)[0].endswith("decode loses 2 of 6 blocks; prefill keeps 1 of them")


def test_the_headline_tells_blocks_that_lose_a_part_of_themselves(tmp_path: Path) -> None:
    thin = (Shrink(1, "attention", (0,)), Shrink(1, "mlp", (3, 4)), Shrink(2, "mlp", (0,)))
    gains = (Gain("1.attention-1", 4.0, 0.5, kept_in_prefill=True), Gain("1.mlp-2", 1.0, 0.5, kept_in_prefill=False))

    def headline(*elements: Element) -> str:
        saved = json.loads(SavedPlan(Plan(decode=Removal(elements)), "tiny", "0" * 64, 6).to_json())
        return parts(outcome_with(saved_plan=saved, gains=gains, model="tiny"), tmp_path)[0]

    kept = "; prefill keeps 1 of the 2 parts"
    assert headline(*thin) == "tiny: decode loses heads or channels of 2 of 6 blocks" + kept
    assert headline(*thin, Drop(5)) == "tiny: decode loses 1 of 6 blocks and heads or channels of 2 of 6 blocks" + kept


def test_the_block_diagram_shows_the_plan(tmp_path: Path) -> None:
    plan = Plan(prefill=Removal([Drop(1)]), decode=Removal([Drop(1), Drop(3)]))
    saved = json.loads(SavedPlan(plan, "tiny", "0" * 64, 6).to_json())
    assert parts(outcome_with(saved_plan=saved), tmp_path)[1] == draw_diagram(plan, 6)


def test_results_stand_beside_the_dense_models(tmp_path: Path) -> None:
    rows = (
        Row("dense", Value(0.5, 50.0, 3.14, 256), Value(0.45, 45.0, 6.2, 64)),
        Row("staged", Value(0.4375, 43.75, 3.1, 256), Value(0.4, 40.0, 6.1, 64)),
    )
    assert parts(outcome_with(rows=rows, objective="accuracy"), tmp_path)[2].splitlines() == [
        "accuracy   256 items searched on   64 held-out items",
        "dense                50.0 +- 3.1         45.0 +- 6.2",
        "staged               43.8 +- 3.1         40.0 +- 6.1",
    ]


def test_without_held_out_items_there_is_no_column_of_them(tmp_path: Path) -> None:
    rows = (Row("dense", Value(0.5, 50.0, 3.14, 256), None),)
    assert parts(outcome_with(rows=rows, objective="margin"), tmp_path)[2].splitlines() == [
        "margin   256 items searched on",
        "dense              50.0 +- 3.1",
    ]


def test_gains_stand_with_their_standard_errors(tmp_path: Path) -> None:
    gains = (Gain("1", 4.04, 0.56, kept_in_prefill=True), Gain("3+4", -1.0, 0.5, kept_in_prefill=False))
    assert parts(outcome_with(gains=gains), tmp_path)[3].splitlines() == [
        "block   gain when kept in prefill   prefill",
        "1                     +4.0 +- 0.6      kept",
        "3+4                   -1.0 +- 0.5   removed",
    ]


def test_costs_are_told_as_changes(tmp_path: Path) -> None:
    costs = (Cost("parameters", "weights", 8_030_000_000, 6_022_500_000), Cost("traffic", "bytes", 20_000, 21_000))
    assert parts(outcome_with(costs=costs, gains=()), tmp_path)[3].splitlines() == [
        "cost           dense      plan    change      unit",
        "parameters    8.03 G    6.02 G   -25.0 %   weights",
        "traffic      20.00 k   21.00 k    +5.0 %     bytes",
    ]


def test_a_cost_that_stays_changes_by_plain_zero(tmp_path: Path) -> None:
    costs = (Cost("traffic", "bytes", 2048, 2048),)
    assert "-0.0 %" not in parts(outcome_with(costs=costs, gains=()), tmp_path)[3]


def test_notes_have_a_line_each(tmp_path: Path) -> None:
    text = Table().report(outcome_with(notes=("first", "second")), tmp_path)
    assert "\n\nnote: first\nnote: second\n\n" in text


def test_the_work_is_counted(tmp_path: Path) -> None:
    counts = {"measured": 30, "cut_short": 7, "remembered": 2}
    outcome = outcome_with(candidates=counts, seconds={"search": 100.4, "split": 20.3}, peak_memory=3 * 2**29, notes=())
    assert parts(outcome, tmp_path)[-2] == "30 candidates measured, 7 cut short, 2 remembered; 121 s, 1.5 GiB at most"


def test_the_end_names_the_files_and_what_to_do_next(tmp_path: Path) -> None:
    assert parts(outcome_with(), tmp_path)[-1] == (
        f"files: {tmp_path}/plan.json, {tmp_path}/outcome.json\nnext:  pdtrim-core show {tmp_path}\n"
        f"       pdtrim-core run {tmp_path}/recipe.toml --set seed=1 --out {tmp_path}-seed1\n"
        f"       pdtrim-core export {tmp_path} --to vllm && pdtrim-core serve {tmp_path}"
    )


def test_a_replaced_model_has_no_block_diagram_and_no_plan_file(tmp_path: Path) -> None:
    costs = (Cost("parameters", "weights", 1000, 900),)
    recipe = {**outcome_with().recipe, "pruner": {"use": "slicegpt"}}
    outcome = outcome_with(model="some/model", saved_plan=None, recipe=recipe, costs=costs, gains=())
    headline, diagram, _, told, *_, files = parts(outcome, tmp_path)
    assert headline == "some/model: replaced as a whole by pruner slicegpt, the same in both stages"
    assert diagram == (
        "no block diagram: the model measured as 'unified' is not a selection of the dense model's blocks and channels"
    )
    assert told.splitlines()[0] == "cost         dense   replaced    change      unit"
    assert files.splitlines()[0] == f"files: {tmp_path}/outcome.json"


def test_nothing_is_written(tmp_path: Path) -> None:
    Table().report(outcome_with(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_columns_align_names_left_and_numbers_right() -> None:
    assert columns([["a", "1"], ["long", "100"]]) == "a        1\nlong   100"
