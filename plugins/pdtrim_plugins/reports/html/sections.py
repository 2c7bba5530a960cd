"""The sections on what one run did."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from pdtrim_core.api import Drop, Merge, Outcome, RunRecord, Value
from pdtrim_plugins.reports.html import dots, tasks
from pdtrim_plugins.reports.html.diagram import block_diagram
from pdtrim_plugins.reports.html.fidelity import is_shown_there
from pdtrim_plugins.reports.html.parts import NOTHING, Cell, Figure, Listing, Part, Section, Table, Text, number, words
from pdtrim_plugins.reports.html.sentences import threshold_of
from pdtrim_plugins.reports.html.wording import amount, change, element, signed, with_error

HELD_OUT, SEARCHED = "held-out items", "items searched on"
RESULTS_LEAD = (
    "Dense is the unpruned model; unified removes from both stages what the plan removes from decode; staged is the plan. "
    "Scores run from 0 to 100, higher is better; each has its standard error."
)
REPLACED_LEAD = (
    "Dense is the unpruned model; unified is the one that replaced it, in both stages. "
    "Scores run from 0 to 100, higher is better; each has its standard error."
)
HELD_OUT_CAPTION = "Nothing was chosen on the held-out items: trust those numbers."


def diagram_section(outcome: Outcome) -> Section:
    """Say what each stage runs."""
    if outcome.saved_plan is None:
        lead = "There is no block diagram: the new model is not a selection of the dense model's blocks and channels."
        return Section("diagram", "What each stage runs", lead)
    saved = outcome.plan
    maker = "decode, so prefill is truncated after the last K/V that decode reads" if saved.first_token == "decode" else "prefill"
    caption = f"Each cell is a block of the dense model, counted from 0. The first token is made by {maker}."
    return Section(
        "diagram", "What each stage runs", parts=[Figure(block_diagram("diagram", saved.plan, outcome.block_count), caption)]
    )


def results_section(outcome: Outcome) -> Section:
    """Compare dense, unified and staged."""
    values: dict[str, Mapping[str, Value | None]] = {
        row.name: {HELD_OUT: row.held_out, SEARCHED: row.calibration} for row in outcome.rows
    }
    looks = {SEARCHED: dots.BEFORE, HELD_OUT: dots.AFTER}
    series = [one for one in looks if any(of[one] for of in values.values())]
    rows = {name: {one: dots.Dot(v.score, v.error) for one in series if (v := of[one])} for name, of in values.items()}
    picture = dots.dots("results", rows, {one: looks[one] for one in series}, title="Results", unit=f"{outcome.objective}, score")
    head = ["", *(f"{value.items} {one}" if (value := values["dense"][one]) else one for one in series)]
    body = [[words(name, strong=name == "staged"), *(_value(of[one]) for one in series)] for name, of in values.items()]
    return Section(
        "results",
        "Results",
        RESULTS_LEAD if outcome.saved_plan is not None else REPLACED_LEAD,
        [
            Figure(
                picture,
                HELD_OUT_CAPTION if HELD_OUT in series else "No items were held out: the plan was chosen on these.",
            ),
            Table(head, body, f"{outcome.objective}, score from 0 to 100"),
        ],
    )


def _value(value: Value | None) -> Cell:
    return NOTHING if value is None else number(value.score, with_error(value.score, value.error))


def tasks_section(record: RunRecord) -> Section:
    """Show the benchmark results in the folder."""
    table = tasks.by_task([result for result in record.results if not is_shown_there(result, record.outcome)])
    variants = [variant for variant in tasks.VARIANTS if any(variant in row for row in table.values())]
    shares = {task: row for task, row in table.items() if all(tasks.is_share(metric) for metric in row.values())}
    parts: list[Part] = []
    if shares:
        rows = {task: {variant: tasks.dot(metric) for variant, metric in row.items()} for task, row in shares.items()}
        picture = dots.dots(
            "tasks", rows, {variant: dots.VARIANTS[variant] for variant in variants}, title="Benchmarks", unit="percent"
        )
        parts.append(Figure(picture, "Bars are one standard error to either side."))
    body = []
    for task, row in table.items():
        best = tasks.best(row)
        cells = [number(row[s].value, tasks.told(row[s]), strong=s in best) if s in row else NOTHING for s in variants]
        body.append([words(task), *cells])
    if body:
        caption = "Shares in percent, other metrics in their own unit; the best below dense in bold"
        parts.append(Table(["task", *variants], body, caption))
    return Section("tasks", "Benchmarks", parts=parts)


def costs_section(outcome: Outcome) -> Section:
    """Show each cost before and after."""
    after = "replaced" if outcome.saved_plan is None else "pruned"
    body = [
        [
            words(f"{cost.name} ({cost.unit})"),
            number(cost.dense, amount(cost.dense)),
            number(cost.plan, amount(cost.plan)),
            number(-cost.saved, change(cost.saved)),
        ]
        for cost in outcome.costs
    ]
    picture = dots.costs({cost.name: 1 - cost.saved for cost in outcome.costs})
    caption = "What is left of each cost, computed from the sizes of the model; nothing was timed."
    return Section(
        "costs",
        "What it saves",
        parts=[Figure(picture, caption), Table(["cost", "dense", after, "change"], body, "Costs before and after")],
    )


def gains_section(outcome: Outcome) -> Section:
    """Show the gain from keeping each element in prefill."""
    if not outcome.gains:
        return Section("gains", "What prefill keeps")
    threshold = threshold_of(outcome)
    body = [
        [
            words(element(gain.element)),
            number(gain.gain, f"{signed(gain.gain)} \N{PLUS-MINUS SIGN} {gain.error:.1f}"),
            words(verdict),
        ]
        for gain in outcome.gains
        for verdict in ["kept" if gain.kept_in_prefill else "removed"]
    ]
    caption = "Each element of decode's removal kept in prefill by itself; bars are standard errors, paired over items."
    return Section(
        "gains",
        "What prefill keeps",
        "Prefill processes the prompt once and in parallel, so a block costs less there than in decode, and may gain more.",
        [
            Figure(dots.gains(outcome.gains, threshold), caption + dots.more_than_shown(len(outcome.gains))),
            Table(["element", "gain in score", "prefill"], body, "Gain when kept in prefill", "All gains as a table"),
        ],
    )


def merges_section(outcome: Outcome) -> Section:
    """Show the errors of merges."""
    if not outcome.merges:
        return Section("merges", "Merges")
    body = [
        [
            words("+".join(map(str, merge.pair))),
            NOTHING if merge.score is None else number(merge.score, f"{merge.score:.4f}"),
            *(number(error, f"{error:.3g}") for error in (merge.untrained, merge.trained, merge.drop)),
            words("merged" if merge.chosen else "not chosen" if merge.kept else "no better than a drop"),
        ]
        for merge in outcome.merges
    ]
    caption = "Mean squared difference from the dense model's hidden states after the merged blocks: lower is better."
    return Section(
        "merges",
        "Errors of merging",
        "A merged block is trained to replace the blocks it is made of. It is not used where its error stays larger than that of "
        "dropping a block.",
        [
            Figure(dots.merges(outcome.merges), caption + dots.more_than_shown(len(outcome.merges))),
            Table(["blocks", "d", "before", "after", "a drop", "decode"], body, "Errors of merges"),
        ],
    )


def blocks_table(outcome: Outcome) -> Table:
    """Return the scores, the norm and the state in both stages of each block."""
    plan = None if outcome.saved_plan is None else outcome.plan.plan
    body = []
    for block in range(outcome.block_count):
        cells = [number(block)]
        cells += [number(s[block], f"{s[block]:.4f}") if block < len(s) else NOTHING for s in _by_block(outcome)]
        cells += [words("" if plan is None else plan.state(stage, block)) for stage in ("prefill", "decode")]
        body.append(cells)
    head = ["block", "score", "pair with next", "norm before it", "prefill", "decode"]
    kept = [column for column in range(len(head)) if any(row[column].text for row in body)]
    return Table(
        [head[column] for column in kept],
        [[row[column] for column in kept] for row in body],
        "Each block",
        "All blocks as a table",
    )


def _by_block(outcome: Outcome) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    return outcome.block_scores, outcome.pair_scores, outcome.norms[:-1]


def notes_section(outcome: Outcome) -> Section:
    """List the notes of the run."""
    return Section("notes", "Notes of the run", parts=[Listing(outcome.notes)] if outcome.notes else [])


def serve_section(record: RunRecord) -> Section:
    """Give the commands that serve the pair."""
    path = shlex.quote(str(record.path))
    if record.outcome is None or record.outcome.saved_plan is None:
        what = "has not finished" if record.outcome is None else "replaced the whole model and has no plan of two stages"
        return Section("serve", "Serve it", f"There is no pair to serve: this run {what}.")
    if record.outcome.plan.plan.drops_parts:
        what = "No engine runs blocks without their attention or their MLP. Write a checkpoint for transformers:"
        return Section("serve", "Serve it", what, [Text(f"pdtrim-core export {path} --to checkpoints")])
    if record.outcome.plan.plan.shrinks_experts:
        what = "Pairs of mixtures of experts are not served yet. Write a checkpoint, which stands for both stages:"
        return Section("serve", "Serve it", what, [Text(f"pdtrim-core export {path} --to checkpoints")])
    commands = f"pdtrim-core export {path} --to vllm\npdtrim-core serve {path}"
    return Section("serve", "Serve it", "Write the two models for vLLM, and serve them:", [Text(commands)])


def removed_blocks(outcome: Outcome) -> tuple[set[int], set[tuple[int, ...]]]:
    """Return the blocks that decode drops, and the runs that it merges."""
    if outcome.saved_plan is None:
        return set(), set()
    decode = outcome.plan.plan.decode
    return {e.block for e in decode if isinstance(e, Drop)}, {e.blocks for e in decode if isinstance(e, Merge)}
