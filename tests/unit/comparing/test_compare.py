"""Runs side by side: paired differences, one column for one question, the best, and what is said where things do not match."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PdtrimError, Plan
from pdtrim_core.comparing.compare import Comparison, compare
from pdtrim_core.comparing.text import latex, markdown, text_table_of
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.plan_file import plan_to_json
from pdtrim_core.plan.selections import Edges, FirstOnly
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.task_results import ItemAnswer, Metric, TaskResult, Variant, path_of, write_result
from pdtrim_core.testing.contracts.small_run import small_run

ITEMS = ("a", "b", "c", "d")
SETTINGS = {"limit": 4, "data": "d1", "plan": "p", "weights": "w", "first_token": "decode"}


def folder(path: Path, **changes: Any) -> Path:
    path.mkdir()
    (path / "outcome.json").write_text(replace(small_run()[0], **changes).to_json())
    return path


def evaluated(
    run: Path, task: str, values: Sequence[float], variant: Variant = "staged", items: Sequence[str] = ITEMS, **settings: Any
) -> TaskResult:
    metric = settings.pop("metric", "acc")
    mean = sum(values) / len(values)
    result = TaskResult(
        task=task,
        variant=variant,
        metrics={metric: settings.pop("value", Metric(mean, statistics.stdev(values) / math.sqrt(len(values))))},
        main=metric,
        answers=tuple(ItemAnswer(item, {metric: value}) for item, value in zip(items, values, strict=True)),
        settings={**SETTINGS, "plan": run.name, **settings},
        versions={},
        seconds=1.0,
    )
    write_result(run, result)
    return result


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    one, other = folder(tmp_path / "one"), folder(tmp_path / "other")
    evaluated(one, "piqa", [1, 0, 1, 0])
    evaluated(other, "piqa", [1, 1, 1, 0])
    evaluated(one, "boolq", [1, 0, 0, 0])
    evaluated(other, "boolq", [0, 0, 0, 0])
    return one, other


def test_a_table_has_methods_by_tasks_with_paired_differences_to_the_first_row(two: tuple[Path, Path]) -> None:
    found = compare(two)
    assert [column.name for column in found.columns] == ["boolq", "piqa"]
    first, second = found.rows
    assert (first.name, second.name) == ("one", "other")
    assert first.cells["piqa"].value == 50
    assert (first.cells["piqa"].difference, first.cells["piqa"].difference_error) == (None, None)
    cell = second.cells["piqa"]
    assert (cell.value, cell.difference, cell.paired, cell.items) == (75, 25, True, 4)
    assert cell.difference_error == pytest.approx(100 * statistics.stdev([0, 1, 0, 0]) / 2)
    assert second.average is not None
    assert (second.average.value, second.average.difference) == (37.5, 0)
    assert second.average.difference_error == pytest.approx(math.hypot(25, 25) / 2)


def test_the_best_of_each_column_is_known_and_ties_are_all_best(two: tuple[Path, Path]) -> None:
    assert compare(two).best == {"boolq": (0,), "piqa": (1,), "average": (0, 1)}


def test_the_dense_row_comes_first_and_is_never_the_best(two: tuple[Path, Path]) -> None:
    evaluated(two[1], "piqa", [1, 1, 1, 1], "dense")
    found = compare(two, ["staged", "dense"], ["piqa"])
    assert [row.name for row in found.rows] == ["dense", "one", "other"]
    assert found.best == {"piqa": (2,)}
    assert (found.rows[0].prefill_removed, found.rows[0].pruning_seconds) == (0, None)
    assert found.rows[1].cells["piqa"].difference == -50


def test_what_a_stage_loses_and_costs_is_the_runs(two: tuple[Path, Path]) -> None:
    outcome = small_run()[0]
    costs = {cost.name: cost for cost in outcome.costs}
    evaluated(two[0], "piqa", [1, 1, 1, 1], "unified")
    staged, unified = compare(two[:1], ["staged", "unified"], ["piqa"]).rows
    assert (staged.name, unified.name) == ("one (staged)", "one (unified)")
    assert staged.prefill_removed == costs["parameters of prefill"].saved
    assert staged.decode_removed == unified.prefill_removed == unified.decode_removed == costs["parameters of decode"].saved
    assert staged.decode_bytes == costs["decode weight traffic"].plan
    assert staged.kv_bytes == costs["K/V shipped to decode"].plan
    left_out = sum(outcome.seconds.get(step, 0) for step in ("open the model", "evaluate", "write"))
    assert staged.pruning_seconds == pytest.approx(sum(outcome.seconds.values()) - left_out, abs=0.06)


def test_other_items_give_errors_that_are_not_paired_and_a_note(two: tuple[Path, Path]) -> None:
    evaluated(two[1], "wnli", [1, 1, 1, 0], items=("a", "b", "c", "e"))
    evaluated(two[0], "wnli", [1, 0, 1, 0])
    found = compare(two, tasks=["wnli"])
    cell = found.rows[1].cells["wnli"]
    assert not cell.paired
    assert cell.difference_error == pytest.approx(
        100 * math.hypot(statistics.stdev([1, 0, 1, 0]) / 2, statistics.stdev([1, 1, 1, 0]) / 2)
    )
    assert found.notes == ("wnli: the items are not the same, so that errors of differences are not paired",)


def test_items_are_paired_by_name_in_whatever_order_they_stand(two: tuple[Path, Path]) -> None:
    evaluated(two[0], "rte", [1, 0, 1, 0])
    evaluated(two[1], "rte", [0, 1, 0, 1], items=tuple(reversed(ITEMS)))
    found = compare(two, tasks=["rte"])
    assert found.rows[1].cells["rte"].paired
    assert found.rows[1].cells["rte"].difference_error == 0


def test_a_perplexity_is_no_percentage_no_mean_over_items_and_better_when_lower(two: tuple[Path, Path]) -> None:
    for run, value in zip(two, (20.0, 30.0), strict=True):
        evaluated(run, "wikitext", [3, 4, 5, 6], metric="word_perplexity", value=Metric(value, 0.5, higher_is_better=False))
    found = compare(two, tasks=["wikitext"])
    assert (found.rows[0].cells["wikitext"].value, found.rows[1].cells["wikitext"].difference) == (20, 10)
    assert found.rows[1].cells["wikitext"].difference_error == pytest.approx(math.hypot(0.5, 0.5))
    assert found.best == {"wikitext": (0,)}
    assert found.rows[0].average is None
    assert found.notes == ("wikitext: its value is no mean over items, so that errors of differences are not paired",)
    assert text_table_of(found).heading[1] == "wikitext word_perplexity (lower is better)"


def test_results_of_other_settings_are_not_mixed_and_named(two: tuple[Path, Path]) -> None:
    evaluated(two[0], "piqa", [1, 1, 1, 1], limit=9)
    found = compare(two, tasks=["piqa"])
    assert found.rows[0].cells["piqa"].value == 50
    assert found.notes == ("piqa: shown with limit = 4; left out with limit = 9 (one)",)


def test_of_settings_that_as_many_rows_have_the_newest_win(two: tuple[Path, Path]) -> None:
    for run, value in zip(two, ([1, 1, 1, 1], [0, 0, 0, 0]), strict=True):
        newer = evaluated(run, "piqa", value, limit=9)
        os.utime(path_of(run, "piqa", "staged", newer.settings), (2**31, 2**31))
    found = compare(two, tasks=["piqa"])
    assert [row.cells["piqa"].value for row in found.rows] == [100, 0]
    assert found.notes == ("piqa: shown with limit = 9; left out with limit = 4 (one, other)",)


def test_a_task_that_a_row_does_not_have_leaves_its_cell_and_average_empty(two: tuple[Path, Path]) -> None:
    evaluated(two[0], "rte", [1, 0, 1, 1])
    found = compare(two)
    assert "rte" not in found.rows[1].cells
    assert found.rows[1].average is None
    assert found.rows[0].average is not None
    assert "rte was not measured with these settings on other" in found.notes


def test_a_run_without_evaluations_is_said(two: tuple[Path, Path], tmp_path: Path) -> None:
    third = folder(tmp_path / "third")
    evaluated(third, "piqa", [1, 1, 1, 0], "unified")
    found = compare([*two, third], tasks=["piqa"])
    assert found.rows[2].cells == {}
    assert "third has no evaluations of the variant staged; it has some of unified" in found.notes


def test_a_model_that_was_replaced_has_its_unified_side_alone(two: tuple[Path, Path], tmp_path: Path) -> None:
    replaced = folder(tmp_path / "slicegpt", saved_plan=None)
    evaluated(replaced, "piqa", [1, 1, 0, 0], "unified")
    found = compare([*two, replaced], ["staged", "unified"], ["piqa"])
    assert [row.name for row in found.rows] == [
        "one (staged)",
        "one (unified)",
        "other (staged)",
        "other (unified)",
        "slicegpt (unified)",
    ]
    assert compare([two[0], replaced], tasks=["piqa"]).rows[1].variant == "unified"


def test_runs_of_the_same_name_go_by_their_paths(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    runs = [folder(tmp_path / name / "run") for name in ("x", "y")]
    assert [row.name for row in compare(runs).rows] == [str(run) for run in runs]


# --- runs that were never evaluated


def test_without_evaluations_the_runs_own_objective_is_shown(tmp_path: Path) -> None:
    runs = [folder(tmp_path / name) for name in ("one", "other")]
    found = compare(runs)
    row = next(row for row in small_run()[0].rows if row.name == "staged")
    assert row.held_out is not None
    assert [column.name for column in found.columns] == ["margin (held out)"]
    assert found.rows[0].cells["margin (held out)"].value == row.held_out.score
    assert any("the table shows the runs' own score (held out)" in note for note in found.notes)
    assert "errors of differences are not paired: the runs' journals do not have the same items" in found.notes


@pytest.mark.parametrize("variant", ["unrecovered", "prefill"])
def test_a_variant_that_a_run_does_not_measure_has_no_objective(variant: Variant, tmp_path: Path) -> None:
    run = folder(tmp_path / "one", recovery=RECOVERY)
    for variants in (("staged", variant), (variant, "staged")):
        found = compare([run], variants)
        rows = {row.variant: row for row in found.rows}
        assert rows[variant].cells == {}
        cell = rows["staged"].cells["margin (held out)"]
        assert (cell.difference, cell.difference_error) == (None, None)
        note = f"runs do not measure their own score of the variant {variant}: see pdtrim-core eval"
        assert note in found.notes
        assert f"one ({variant})" in markdown(found)


def test_a_pair_loses_the_same_without_its_recovery(tmp_path: Path) -> None:
    run = folder(tmp_path / "one", recovery=RECOVERY)
    variants: tuple[Variant, ...] = ("staged", "unrecovered")
    for variant in variants:
        evaluated(run, "piqa", [1, 0, 1, 0], variant)
    staged, unrecovered = compare([run], variants).rows
    assert unrecovered.cells["piqa"].difference == 0
    assert replace(unrecovered, name="", variant="staged", recovery=staged.recovery, cells={}) == replace(
        staged, name="", cells={}
    )


def quantised(path: Path, **formats: str | None) -> Path:
    """Return a run whose stages have formats."""
    saved = small_run()[0].plan
    given = Formats("rtn", formats.get("prefill"), formats.get("decode"), "abc")
    seconds = {"open the model": 3.0, "search": 20.0, "quantise": 5.0}
    return folder(path, saved_plan=replace(saved, formats=given).to_data(), seconds=seconds)


def test_rows_name_the_formats_of_their_stages_where_some_have_one(tmp_path: Path) -> None:
    runs = quantised(tmp_path / "small", prefill="W8A8", decode="W4A16"), folder(tmp_path / "plain")
    variants: tuple[Variant, ...] = ("staged", "unquantized", "unified", "prefill", "dense")
    found = compare(runs, variants)
    formats = {row.name: row.formats for row in found.rows}
    assert formats == {
        "dense": (None, None),
        "small (staged)": ("W8A8", "W4A16"),
        "small (unquantized)": (None, None),
        "small (unified)": ("W4A16", "W4A16"),
        "small (prefill)": ("W8A8", "W8A8"),
        "plain (staged)": (None, None),
        "plain (unified)": (None, None),
        "plain (prefill)": (None, None),
    }
    grid = text_table_of(found)
    column = grid.heading.index("formats (prefill/decode)")
    assert [row[column] for row in grid.rows] == ["-", "W8A8/W4A16", "-", "W4A16", "W8A8", "-", "-", "-"]
    assert "plain has no variant 'unquantized': its recipe names no formats, so that 'staged' is the same" in found.notes
    before, after = (next(row for row in found.rows if row.name == f"small ({name})") for name in ("unquantized", "staged"))
    assert (before.pruning_seconds, after.pruning_seconds) == (20.0, 25.0)
    assert before.decode_bytes is None  # only the bytes with formats are counted
    assert before.kv_bytes == after.kv_bytes
    assert json.loads(found.to_json())["rows"][1]["formats"] == ["W8A8", "W4A16"]


def test_a_stage_without_a_format_is_told_beside_one_with(tmp_path: Path) -> None:
    grid = text_table_of(compare([quantised(tmp_path / "one", decode="W8A16")]))
    assert "-/W8A16" in grid.rows[0]


def test_without_formats_there_is_no_column_of_them(tmp_path: Path) -> None:
    assert not any("formats" in title for title in text_table_of(compare([folder(tmp_path / "one")])).heading)


def journal(run: Path, plan: Plan, values: Sequence[float], part: str = "held-out") -> None:
    mean = sum(values) / len(values)
    line = {"part": part, "plan": plan_to_json(plan), "items": list(values), "mean": mean, "score": 100 * mean}
    with (run / "journal.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def with_value(outcome: Outcome, values: Sequence[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    rows = []
    for row in outcome.rows:
        assert row.held_out is not None
        rows.append(replace(row, held_out=replace(row.held_out, mean=mean, score=100 * mean, error=20.0, items=len(values))))
    return {"rows": tuple(rows), "objective": "accuracy"}


def test_the_journals_pair_the_runs_own_objective(tmp_path: Path) -> None:
    outcome = small_run()[0]
    values = ([1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    runs = [folder(tmp_path / name, **with_value(outcome, own)) for name, own in zip(("one", "other"), values, strict=True)]
    unpaired = compare(runs).rows[1].cells["accuracy (held out)"]
    assert (unpaired.difference, unpaired.paired) == (25, False)
    assert unpaired.difference_error == pytest.approx(math.hypot(20, 20))
    for run, own in zip(runs, values, strict=True):
        journal(run, outcome.plan.plan, own)
    paired = compare(runs).rows[1].cells["accuracy (held out)"]
    assert (paired.difference, paired.paired) == (25, True)
    assert paired.difference_error == pytest.approx(100 * statistics.stdev([0, 1, 0, 0]) / 2)


RECOVERY = (
    RecoveryResult("kv-refit", Metric(0.8), Metric(0.7), 8, 512, 1.5, kept=True, changed={"prefill": 8}),
    RecoveryResult("rescale", Metric(0.7), Metric(0.9), 8, 512, 1.5, kept=False, changed={"decode": 8}),
    RecoveryResult("fold", Metric(0.7), Metric(0.4), 8, 512, 1.5, kept=True, changed={"decode": 8}),
)


@pytest.fixture
def recovered(tmp_path: Path) -> tuple[Path, Path]:
    """Return a run with recovery and one without, with their fidelity."""
    seconds = {"open the model": 3.0, "search": 20.0, "recover": 5.0, "evaluate": 1.0}
    runs = folder(tmp_path / "mended", recovery=RECOVERY, seconds=seconds), folder(tmp_path / "plain", seconds=seconds)
    for run in runs:
        near(run, "staged")
        near(run, "dense")
    near(runs[0], "unrecovered")
    return runs


def test_runs_with_and_without_recovery_stand_side_by_side(recovered: tuple[Path, Path]) -> None:
    found = compare(recovered, ["unrecovered", "staged", "dense"])
    assert [row.name for row in found.rows] == ["dense", "mended (unrecovered)", "mended (staged)", "plain"]
    assert [row.recovery for row in found.rows] == [(), (), ("kv-refit", "fold"), ()]
    assert [row.pruning_seconds for row in found.rows] == [None, 20.0, 25.0, 25.0]
    assert found.rows[1].decode_removed == found.rows[2].decode_removed
    assert found.rows[1].kv_bytes == found.rows[2].kv_bytes
    grid = text_table_of(found)
    column = grid.heading.index("recovery")
    assert [row[column] for row in grid.rows] == ["-", "-", "kv-refit, fold", "-"]
    assert "plain has no variant 'unrecovered': its recipe names no recovery, so that 'staged' is the same" in found.notes
    assert "| recovery |" in markdown(found)
    assert json.loads(found.to_json())["rows"][2]["recovery"] == ["kv-refit", "fold"]


def test_without_recovery_there_is_no_column_of_it(two: tuple[Path, Path]) -> None:
    assert "recovery" not in text_table_of(compare(two)).heading


def test_the_pair_before_recovery_is_compared_by_what_was_measured_of_it(recovered: tuple[Path, Path]) -> None:
    found = compare(recovered, ["unrecovered", "staged"])
    assert [column.name for column in found.columns] == ["margin (held out)", "fidelity"]
    before, after, plain = found.rows
    assert (before.name, plain.name) == ("mended (unrecovered)", "plain")
    assert before.cells.keys() == {"fidelity"}
    assert after.cells["fidelity"].difference == pytest.approx((10 * -0.4 + 30 * -0.1 + 20 * -0.2) / 60)
    assert after.cells["fidelity"].paired
    assert after.cells["margin (held out)"].difference is None
    assert "runs do not measure their own score of the variant unrecovered: see pdtrim-core eval" in found.notes


def test_prefill_alone_has_no_score_of_its_own_either(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    staged, prefill = compare([run], ["staged", "prefill"]).rows
    assert "margin (held out)" in staged.cells
    assert prefill.cells == {}


def test_a_variant_that_no_run_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError, match="there is nothing to compare: plain has no variant 'unrecovered': its recipe names no"):
        compare([folder(tmp_path / "plain")], ["unrecovered"])


# --- bad input


def test_no_runs_are_refused() -> None:
    with pytest.raises(PdtrimError, match="name the folders of the runs to compare"):
        compare([])


def test_a_run_that_is_named_twice_is_refused(two: tuple[Path, Path]) -> None:
    with pytest.raises(PdtrimError, match="one is named twice"):
        compare([two[0], two[1], two[0]])


def test_runs_of_different_models_are_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    environment = replace(small_run()[0].environment, weights="f" * 64)
    other = folder(tmp_path / "foreign", model="big", environment=environment)
    with pytest.raises(PdtrimError, match=r"foreign on big \(ffffffffffff\): compare runs on the same weights"):
        compare([two[0], other])


def test_runs_with_no_task_in_common_are_refused(tmp_path: Path) -> None:
    runs = [folder(tmp_path / name) for name in ("one", "other")]
    evaluated(runs[0], "piqa", [1, 0, 1, 0])
    evaluated(runs[1], "boolq", [1, 0, 1, 0])
    with pytest.raises(
        PdtrimError, match=r"no task .* on two of these rows with the same settings \(one has piqa; other has boolq\): see"
    ):
        compare(runs)


def test_a_task_that_nobody_has_is_refused_with_the_nearest(two: tuple[Path, Path]) -> None:
    with pytest.raises(PdtrimError, match=r"none of these rows has a result of the task 'piqaa'; did you mean 'piqa'\?"):
        compare(two, tasks=["piqaa"])


def test_other_objectives_are_refused(tmp_path: Path) -> None:
    runs = [folder(tmp_path / "one"), folder(tmp_path / "other", objective="accuracy")]
    with pytest.raises(PdtrimError, match=r"their objectives differ \(accuracy, margin\): evaluate them with pdtrim-core eval"):
        compare(runs)


def test_a_folder_without_a_finished_run_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "journal.jsonl").touch()
    with pytest.raises(PdtrimError, match="its run has not finished"):
        compare([*two, tmp_path / "half"])


# --- text


def test_markdown_marks_the_best_and_has_the_notes(two: tuple[Path, Path]) -> None:
    evaluated(two[0], "piqa", [1, 1, 1, 1], limit=9)
    lines = markdown(compare(two)).splitlines()
    assert lines[0].startswith("| method | boolq | piqa | average | prefill removed |")
    assert lines[1].count("---:") == lines[0].count("|") - 2
    assert lines[2].startswith("| one | **25.0** +- 25.0 | 50.0 +- 28.9 | **37.5** +- ")
    assert lines[3].startswith("| other | 0.0 (-25.0 +- 25.0) | **75.0** (+25.0 +- 25.0) | ")
    assert lines[-1] == "piqa: shown with limit = 4; left out with limit = 9 (one)"


def test_a_column_of_small_numbers_has_three_digits(two: tuple[Path, Path]) -> None:
    for run, values in zip(two, ([0.41, 0.45, 0.40, 0.44], [0.51, 0.56, 0.50, 0.55]), strict=True):
        evaluated(run, "nats", values, metric="kl", value=Metric(sum(values) / 4, 0.012, higher_is_better=False))
    found = compare(two, tasks=["nats", "piqa"])
    lines = markdown(found).splitlines()
    assert "| 0.425 +- 0.012 |" in lines[2].replace("**", "")
    assert "| 50.0 +- 28.9 |" in lines[2].replace("**", "")
    assert "0.530 (+0.105 +- 0.003)" in lines[3].replace("**", "")


def test_latex_is_escaped_and_marks_the_best(tmp_path: Path) -> None:
    runs = [folder(tmp_path / name) for name in ("t0=5,blocks_3", "50%")]
    for run, values in zip(runs, ([1, 0, 1, 0], [1, 1, 1, 0]), strict=True):
        evaluated(run, "arc_easy", values)
    text = latex(compare(runs))
    assert r"\begin{tabular}{lrrrrrr}" in text
    assert r"method & arc\_easy & prefill removed" in text
    assert r"t0=5,blocks\_3 & 50.0 $\pm$ 28.9" in text
    assert r"50\% & \textbf{75.0} (+25.0 $\pm$ 25.0)" in text
    assert text.count(r"\\") == 3


def test_json_has_all_of_it(two: tuple[Path, Path]) -> None:
    from pydantic import TypeAdapter

    found = compare(two)
    assert TypeAdapter(Comparison).validate_json(found.to_json()) == found


KL = {"staged": (0.5, 0.2, 0.4), "unrecovered": (0.9, 0.3, 0.6), "unified": (0.6, 0.5, 0.4), "dense": (0.0, 0.0, 0.0)}
TOKENS = (10, 30, 20)


def near(run: Path, variant: Variant, tokens: Sequence[int] = TOKENS, **settings: Any) -> None:
    """Write the fidelity of a variant, whose divergence is a mean over tokens."""
    kl = KL[variant]
    value = sum(one * count for one, count in zip(kl, tokens, strict=True)) / sum(tokens)
    answers = tuple(
        ItemAnswer(name, {"kl": one, "tokens": float(count)}) for name, one, count in zip("abc", kl, tokens, strict=True)
    )
    metrics = {"kl": Metric(value, 0.1, higher_is_better=False)}
    write_result(run, TaskResult("fidelity", variant, metrics, "kl", answers, {"plan": run.name, **settings}, {}, 1.0))


def test_fidelity_stands_beside_the_runs_own_objective(tmp_path: Path) -> None:
    runs = [folder(tmp_path / name) for name in ("one", "other")]
    for run in runs:
        near(run, "staged")
        near(run, "unified")
    found = compare(runs, ["unified", "staged"])
    assert [column.name for column in found.columns] == ["margin (held out)", "fidelity"]
    assert found.rows[1].cells["fidelity"].value == pytest.approx(19 / 60)
    assert found.rows[1].cells.keys() == {"margin (held out)", "fidelity"}
    assert found.best["fidelity"] == (1, 3)


def test_a_difference_of_divergences_is_paired_over_prompts_of_several_tokens(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    near(run, "unified")
    near(run, "staged")
    cell = compare([run], ["unified", "staged"]).rows[1].cells["fidelity"]
    gaps = [-0.1, -0.3, 0.0]
    mean = sum(gap * count for gap, count in zip(gaps, TOKENS, strict=True)) / 60
    squares = sum((count * (gap - mean)) ** 2 for gap, count in zip(gaps, TOKENS, strict=True))
    assert cell.paired
    assert cell.difference == pytest.approx(mean)
    assert cell.difference_error == pytest.approx(math.sqrt(3 / 2 * squares) / 60)


def test_prompts_with_other_lengths_are_not_paired(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    near(run, "unified")
    near(run, "staged", (20, 20, 20))
    found = compare([run], ["unified", "staged"])
    assert not found.rows[1].cells["fidelity"].paired
    assert "fidelity: the items are not the same, so that errors of differences are not paired" in found.notes


def test_fidelity_is_no_benchmark_that_runs_must_have_in_common(two: tuple[Path, Path], tmp_path: Path) -> None:
    third = folder(tmp_path / "third")
    near(third, "staged")
    found = compare([*two, third])
    assert [column.name for column in found.columns] == ["boolq", "fidelity", "piqa"]
    for run in two:
        for file in (run / "evaluations").glob("*/*.json"):
            if ("boolq" if run == two[0] else "piqa") in file.name:
                file.unlink()
        near(run, "staged")
    with pytest.raises(PdtrimError, match="no task was measured on two of these rows"):
        compare(two)
    assert [column.name for column in compare(two, tasks=["fidelity"]).columns] == ["fidelity"]


def test_of_other_objectives_fidelity_alone_is_compared(tmp_path: Path) -> None:
    runs = [folder(tmp_path / name, objective=name) for name in ("margin", "accuracy")]
    for run in runs:
        near(run, "staged")
    assert [column.name for column in compare(runs).columns] == ["fidelity"]


def selecting(path: Path) -> Path:
    """Return a run of whose decode's blocks two read only some of a prompt."""
    saved = small_run()[0].plan
    blocks = [layer.block for layer in saved.plan.layers("decode", saved.block_count)]
    plan = saved.plan.selecting([FirstOnly(blocks[-1]), Edges(blocks[0], 0.1, 0.2)])
    seconds = {"search": 20.0, "quantise": 1.0, "select K/V": 5.0}
    return folder(path, saved_plan=replace(saved, plan=plan).to_data(), seconds=seconds)


def test_rows_say_how_many_blocks_read_less_of_prompts_where_some_do(tmp_path: Path) -> None:
    runs = selecting(tmp_path / "small"), folder(tmp_path / "plain")
    found = compare(runs, ("staged", "unselected", "unified", "dense"))
    assert {row.name: row.selected for row in found.rows} == {
        "dense": 0,
        "small (staged)": 2,
        "small (unselected)": 0,
        "small (unified)": 0,
        "plain (staged)": 0,
        "plain (unified)": 0,
    }
    grid = text_table_of(found)
    column = grid.heading.index("K/V selected, blocks")
    assert [row[column] for row in grid.rows] == ["-", "2", "-", "-", "-", "-"]
    assert any("plain has no variant 'unselected': its decode reads all of every prompt" in note for note in found.notes)
    before, after = (next(row for row in found.rows if row.name == f"small ({name})") for name in ("unselected", "staged"))
    assert (before.pruning_seconds, after.pruning_seconds) == (20.0, 25.0)
    assert before.kv_bytes is None  # only the bytes that are shipped with the selection are counted
    assert after.kv_bytes is not None
    assert before.decode_bytes == after.decode_bytes
    assert (before.prefill_removed, before.decode_removed) == (after.prefill_removed, after.decode_removed)


def test_where_all_read_whole_prompts_there_is_no_column_of_it(tmp_path: Path) -> None:
    assert not any("K/V selected" in title for title in text_table_of(compare([folder(tmp_path / "one")])).heading)
