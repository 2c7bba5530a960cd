"""The table at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core import Drop, DropPart, Element, Outcome, Plan, Removal, SavedPlan, Shrink, draw_diagram
from pdtrim_core.api import AnswerSample, Edges, Fidelity, FirstOnly, Formats, Metric
from pdtrim_core.results.outcome import Cost, Gain, Row, Value
from pdtrim_core.testing.contracts import small_run
from pdtrim_plugins.reports.nearness import verdict, verdict_on_formats, verdict_on_recovery, verdict_on_selection
from pdtrim_plugins.reports.table import Table, columns
from tests.browser import runs

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
    assert headline(thin[2]) == "tiny: decode loses channels of 1 of 6 blocks" + kept


def test_the_headline_counts_parts_that_go_from_blocks_alone(tmp_path: Path) -> None:
    def headline(*elements: Element) -> str:
        saved = json.loads(SavedPlan(Plan(decode=Removal(elements)), "tiny", "0" * 64, 6).to_json())
        return parts(outcome_with(saved_plan=saved, gains=(), model="tiny"), tmp_path)[0]

    attention, both = [DropPart(1, "attention"), DropPart(2, "attention")], [DropPart(4, "attention"), DropPart(4, "mlp")]
    assert headline(*attention) == "tiny: decode loses the attention of 2 of 6 blocks"
    saved = json.loads(SavedPlan(Plan(decode=Removal(attention)), "tiny", "0" * 64, 6).to_json())
    end = parts(outcome_with(saved_plan=saved, gains=()), tmp_path)[-1]
    assert end.endswith(f"pdtrim-core export {tmp_path} --to checkpoints")
    assert headline(*attention, DropPart(3, "mlp"), *both) == (
        "tiny: decode loses 1 of 6 blocks, the attention of 2 of 6 blocks and the MLP of 1 of 6 blocks"
    )


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


def test_costs_fit_a_terminal_of_80_columns(tmp_path: Path) -> None:
    costs = (
        Cost("prefill work for 1024 tokens", "FLOPs", 253.83e9, 197.34e9),
        Cost("K/V shipped to decode", "bytes a prompt token", 46_080, 38_400),
    )
    told = parts(outcome_with(costs=costs, gains=()), tmp_path)[3].splitlines()
    assert max(map(len, told)) <= 80
    assert told[0] == "cost                             dense      plan   change                  unit"


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
        f"files: {tmp_path}/recipe.toml, {tmp_path}/plan.json, {tmp_path}/outcome.json\nnext:  pdtrim-core show {tmp_path}\n"
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
    assert files.splitlines()[0] == f"files: {tmp_path}/recipe.toml, {tmp_path}/outcome.json"


def test_nothing_is_written(tmp_path: Path) -> None:
    Table().report(outcome_with(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_columns_align_names_left_and_numbers_right() -> None:
    assert columns([["a", "1"], ["long", "100"]]) == "a        1\nlong   100"


def near(outcome: Outcome, out: Path) -> list[str]:
    """Return the lines on how near the variants are to the dense model; none where there are none."""
    found = [part for part in parts(outcome, out) if part.startswith("how near")]
    return found[0].splitlines() if found else []


def test_how_near_the_variants_are_to_the_dense_model_fits_a_narrow_terminal(tmp_path: Path) -> None:
    lines = near(outcome_with(fidelity=runs.fidelity()), tmp_path)
    assert lines == [
        "how near to the dense model, on 64 held-out items:",
        "                KL, nats      top-1, %   accepted, % (tau)",
        "dense              0.000         100.0         100.0 (4.0)",
        "unified   0.812 +- 0.090   66.4 +- 1.2   59.4 +- 0.9 (2.3)",
        "staged    0.401 +- 0.045   78.1 +- 1.2   79.9 +- 0.9 (2.9)",
        "           perplexity   lost/won, % (p)   loops   length",
        "dense     21.4 +- 1.3    0.0/0.0 (1.00)     0 %     1.00",
        "unified   57.9 +- 1.3   14.1/4.7 (0.04)    16 %     1.20",
        "staged    36.2 +- 1.3    7.8/3.1 (0.04)     8 %     1.10",
        "staged is 0.411 +- 0.050 nats a token nearer to dense than unified",
    ]
    assert max(map(len, lines[:-1])) <= 60


def test_what_the_pair_was_before_recovery_stands_above_it_in_a_narrow_terminal(tmp_path: Path) -> None:
    lines = near(outcome_with(fidelity=runs.fidelity(recovered=True)), tmp_path)
    assert lines[1:] == [
        "                   KL, nats     top-1, %  accepted, % (tau)",
        "dense                 0.000        100.0        100.0 (4.0)",
        "unified      0.812 +- 0.090  66.4 +- 1.2  59.4 +- 0.9 (2.3)",
        "unrecovered  0.716 +- 0.080  69.5 +- 1.2  64.2 +- 0.9 (2.4)",
        "staged       0.379 +- 0.042  78.8 +- 1.2  81.0 +- 0.9 (2.9)",
        "               perplexity   lost/won, % (p)   loops   length",
        "dense         21.4 +- 1.3    0.0/0.0 (1.00)     0 %     1.00",
        "unified       57.9 +- 1.3   14.1/4.7 (0.04)    16 %     1.20",
        "unrecovered   47.1 +- 1.3   12.5/4.7 (0.04)    14 %     1.18",
        "staged        32.7 +- 1.3    7.8/3.1 (0.04)     8 %     1.09",
        "staged is 0.433 +- 0.050 nats a token nearer to dense than unified",
        "recovery takes 0.337 +- 0.021 nats a token away, 47 % of the distance to dense",
    ]
    assert max(map(len, lines[:-2])) <= 60


def test_each_recovery_has_a_line_in_a_narrow_terminal(tmp_path: Path) -> None:
    named = replace(runs.recovery()[1], name="exact-first-token")
    (block,) = [
        part
        for part in parts(outcome_with(recovery=(*runs.recovery(), named)), tmp_path)
        if part.startswith("recovery, KL to dense")
    ]
    assert block.splitlines() == [
        "recovery, KL to dense in nats a token on other texts:",
        "                   before  after  taken away   tokens     s",
        "kv-refit            0.716  0.669         7 %   25,600   9.4",
        "fold                0.669  0.379        43 %   25,600    38",
        "rescale             0.379  0.401    left out   25,600   4.0",
        "distill             0.379  0.330        13 %  500,096  2211",
        "exact-first-token   0.669  0.379        43 %   25,600    38",
    ]
    assert max(map(len, block.splitlines())) <= 60


def test_recoveries_of_one_name_are_told_apart_by_what_they_changed(tmp_path: Path) -> None:
    (fold, *_) = (one for one in runs.recovery() if one.name == "fold")
    twice = (replace(fold, changed={"prefill": 9, "decode": 0}), replace(fold, changed={"prefill": 0, "decode": 9}))
    (block,) = (part for part in parts(outcome_with(recovery=twice), tmp_path) if part.startswith("recovery, KL to dense"))
    assert [line.partition(")")[0] for line in block.splitlines()[2:]] == ["fold (prefill", "fold (decode"]


def test_a_run_without_recovery_says_nothing_of_it(tmp_path: Path) -> None:
    said = parts(outcome_with(fidelity=runs.fidelity()), tmp_path)[:-1]
    assert [part for part in said if "recover" in part] == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Metric(0.3367, 0.02), "recovery takes 0.337 +- 0.020 nats a token away, 47 % of the distance to dense"),
        (
            Metric(-0.2, 0.05),
            "recovery makes it worse here: staged is 0.200 +- 0.050 nats a token farther from dense than unrecovered",
        ),
        (
            Metric(0.02, 0.05),
            "staged and unrecovered are not told apart: they differ by 0.020 +- 0.050 nats a token, less than 2 standard errors",
        ),
        (Metric(0.0, 0.0), "staged and unrecovered are equally near to dense: here they give the same"),
        (Metric(0.3), "one prompt is too few to tell staged and unrecovered apart"),
        (None, ""),
    ],
)
def test_one_line_says_what_recovery_took_away(found: Metric | None, said: str) -> None:
    assert verdict_on_recovery(replace(runs.fidelity(recovered=True), recovered=found)) == said


def test_without_a_distance_no_share_of_it_is_told() -> None:
    near = replace(runs.fidelity(), recovered=Metric(0.3, 0.02))
    assert verdict_on_recovery(near) == "recovery takes 0.300 +- 0.020 nats a token away"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, ""),
        (Metric(0.3, 0.02), "formats take the pair 0.300 +- 0.020 nats a token farther from dense"),
        (Metric(-0.3, 0.02), "formats take the pair 0.300 +- 0.020 nats a token nearer to dense"),
        (
            Metric(0.01, 0.02),
            "staged and unquantized are not told apart: they differ by 0.010 +- 0.020 nats a token, less than 2 standard errors",
        ),
        (Metric(0.3, None), "one prompt is too few to tell staged and unquantized apart"),
    ],
)
def test_one_line_says_what_formats_cost(found: Metric | None, said: str) -> None:
    assert verdict_on_formats(replace(runs.fidelity(), quantized=found)) == said


def test_recovery_is_judged_before_the_pair_got_its_formats() -> None:
    near = runs.fidelity(recovered=True)
    near = replace(near, variants={**near.variants, "unquantized": near.variants["staged"]}, recovered=Metric(-0.3, 0.02))
    assert "unquantized is 0.300 +- 0.020 nats a token farther from dense than unrecovered" in verdict_on_recovery(near)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, ""),
        (Metric(0.3, 0.02), "reading less of prompts takes the pair 0.300 +- 0.020 nats a token farther from dense"),
        (Metric(-0.3, 0.02), "reading less of prompts takes the pair 0.300 +- 0.020 nats a token nearer to dense"),
        (Metric(0.0, 0.0), "staged and unselected are equally near to dense: here they give the same"),
        (Metric(0.3, None), "one prompt is too few to tell staged and unselected apart"),
    ],
)
def test_one_line_says_what_reading_less_costs(found: Metric | None, said: str) -> None:
    assert verdict_on_selection(replace(runs.fidelity(), selected=found)) == said


def test_formats_and_recovery_are_judged_before_the_pair_reads_less() -> None:
    near = runs.fidelity(recovered=True)
    unclear = Metric(0.01, 0.02)
    near = replace(near, variants={**near.variants, "unselected": near.variants["staged"]}, recovered=unclear, quantized=unclear)
    assert verdict_on_recovery(near).startswith("unselected and unrecovered are not told apart")
    assert verdict_on_formats(near).startswith("unselected and unquantized are not told apart")


def test_the_headline_and_the_diagram_say_which_blocks_read_less(tmp_path: Path) -> None:
    saved = small_run()[0].plan
    blocks = [layer.block for layer in saved.plan.layers("decode", saved.block_count)]
    plan = saved.plan.selecting([FirstOnly(blocks[-1]), Edges(blocks[0], 0.1, 0.2)])
    headline, diagram, *_ = parts(outcome_with(saved_plan=replace(saved, plan=plan).to_data()), tmp_path)
    assert headline.endswith("; 2 blocks of decode read only some of a prompt")
    assert "prompts" in diagram


def test_the_headline_names_the_formats(tmp_path: Path) -> None:
    saved = replace(small_run()[0].plan, formats=Formats("rtn", None, "W4A16", "abc"))
    (headline, *_) = parts(outcome_with(saved_plan=saved.to_data()), tmp_path)
    assert headline.endswith("; formats: decode W4A16 by rtn")


def sampled(answers: Sequence[str], prompt: str = "What is it?\nAnswer:") -> Fidelity:
    """Return a comparison with one sample for each dense answer; the pair answers "pair" and its number."""
    samples = tuple(
        AnswerSample(f"item {number}", prompt, {"dense": answer, "staged": f"pair {number}"})
        for number, answer in enumerate(answers)
    )
    return replace(runs.fidelity(), samples=samples)


def sample_in(outcome: Outcome, out: Path) -> list[str]:
    found = [part for part in parts(outcome, out) if part.startswith("answers to")]
    return found[0].splitlines() if found else []


def test_one_sample_is_shown_that_where_the_dense_answer_is_of_middle_length(tmp_path: Path) -> None:
    lines = sample_in(outcome_with(fidelity=sampled(["No.", "a very long answer " * 9, "A lamp,\n\nI think.<|end|>"])), tmp_path)
    assert lines == [
        "answers to a held-out prompt, ... What is it? Answer:",
        "dense    A lamp, I think.<|end|>",
        "staged   pair 2",
    ]


def test_a_long_answer_and_a_long_prompt_are_cut_and_steer_no_terminal(tmp_path: Path) -> None:
    lines = sample_in(outcome_with(fidelity=sampled(["\x1b[2J" + "word " * 40], prompt="early " * 30 + "late?")), tmp_path)
    assert lines[0].endswith("early late?")
    assert lines[1].startswith("dense    \\x1b[2Jword word")
    assert lines[1].endswith(" ...")
    assert max(map(len, lines)) <= 95


def test_without_samples_none_is_shown(tmp_path: Path) -> None:
    assert sample_in(outcome_with(fidelity=sampled([])), tmp_path) == []


def test_a_replaced_model_is_told_beside_the_dense_one(tmp_path: Path) -> None:
    recipe = {**outcome_with().recipe, "pruner": {"use": "slicegpt"}}
    lines = near(outcome_with(saved_plan=None, recipe=recipe, fidelity=runs.fidelity(staged=False)), tmp_path)
    assert [line.split()[0] for line in lines[2:4]] == ["dense", "unified"]
    assert lines[-1] == "unified is 0.812 +- 0.090 nats a token from dense"


def test_of_how_many_items_loops_and_lengths_are_is_said(tmp_path: Path) -> None:
    lines = near(outcome_with(fidelity=replace(runs.fidelity(), own_answers=16)), tmp_path)
    assert lines[0] == "how near to the dense model, on 64 held-out items (loops and length: 16 of them):"


def test_figures_that_were_not_measured_have_no_column(tmp_path: Path) -> None:
    variants = {name: {"kl": Metric(0.5), "perplexity": Metric(20.0, 1.0)} for name in ("dense", "unified")}
    lines = near(outcome_with(fidelity=Fidelity(1, 8, variants)), tmp_path)
    assert lines == [
        "how near to the dense model, on 1 held-out item:",
        "          KL, nats",
        "dense        0.500",
        "unified      0.500",
        "           perplexity",
        "dense     20.0 +- 1.0",
        "unified   20.0 +- 1.0",
        "unified is 0.500 nats a token from dense",
    ]


def test_a_run_that_did_not_measure_it_says_nothing_of_it(tmp_path: Path) -> None:
    assert near(outcome_with(fidelity=None), tmp_path) == []


@pytest.mark.parametrize(
    ("nearer", "said"),
    [
        (Metric(0.42, 0.05), "staged is 0.420 +- 0.050 nats a token nearer to dense than unified"),
        (Metric(-0.42, 0.05), "staged is 0.420 +- 0.050 nats a token farther from dense than unified"),
        (Metric(0.1, 0.05), "staged is 0.100 +- 0.050 nats a token nearer to dense than unified"),
        (
            Metric(-0.099, 0.05),
            "staged and unified are not told apart: they differ by 0.099 +- 0.050 nats a token, less than 2 standard errors",
        ),
        (Metric(0.0, 0.0), "staged and unified are equally near to dense: here they give the same"),
        (Metric(0.42), "one prompt is too few to tell staged and unified apart"),
    ],
)
def test_one_line_says_what_it_means_for_the_pair(nearer: Metric, said: str) -> None:
    assert verdict(replace(runs.fidelity(), nearer=nearer)) == said


def test_without_figures_nothing_is_said() -> None:
    assert verdict(Fidelity(1, 8, {"unified": {}})) == ""
