"""The end of a run in the terminal: the block diagram, the result table, the costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pdtrim_core.api import Metric, Report, Shrink, draw_diagram, lost_units, visible
from pdtrim_plugins.reports import nearness

if TYPE_CHECKING:
    from pdtrim_core import Outcome
    from pdtrim_core.api import RecoveryResult

Metrics = Mapping[str, Metric]
SHORT = 10.0
"""Seconds below which a tenth of one is told."""
NARROW = 60
"""Characters of a line in a small terminal."""
SAMPLE_WIDTH = 60
"""Characters of an answer that are shown."""


class Table(Report):
    """Prints the block diagram of both stages, the results next to the dense model's, how near to it they are, and the costs.

    There is no block diagram where a pruner replaced the whole model.
    """

    name = "table"

    def report(self, outcome: Outcome, out: Path) -> str:
        """Return the text; nothing is written."""
        parts = [
            _headline(outcome),
            _diagram(outcome),
            _results(outcome),
            _fidelity(outcome),
            _recovery(outcome),
            _sample(outcome),
            _gains(outcome),
            _merges(outcome),
            _costs(outcome),
            _notes(outcome),
            _work(outcome),
            _next(outcome, out),
        ]
        return "\n\n".join(part for part in parts if part)


def _headline(outcome: Outcome) -> str:
    if outcome.saved_plan is None:
        return f"{outcome.model}: replaced as a whole by pruner {outcome.recipe['pruner']['use']}, the same in both stages"
    plan = outcome.plan.plan
    removed, shrunk = plan.decode.blocks_removed, [element for element in plan.decode if isinstance(element, Shrink)]
    parts = [part for part in plan.decode.dropped_parts if len(plan.decode.lost_at(part.block)) == 1]
    losses = [f"{removed} of {outcome.block_count} blocks"] if removed or not (shrunk or parts) else []
    for part, name in (("attention", "the attention"), ("mlp", "the MLP")):
        if count := sum(one.part == part for one in parts):
            losses.append(f"{name} of {count} of {outcome.block_count} blocks")
    for experts in (False, True):
        if narrowed := [shrink for shrink in shrunk if (shrink.part == "experts") == experts]:
            blocks = {shrink.block for shrink in narrowed}
            losses.append(f"{lost_units(narrowed)} of {len(blocks)} of {outcome.block_count} blocks")
    text = f"{outcome.model}: decode loses {', '.join(losses[:-1])}{' and ' * (len(losses) > 1)}{losses[-1]}"
    kept_in_prefill = sum(gain.kept_in_prefill for gain in outcome.gains)
    what = f"{kept_in_prefill} of the {len(outcome.gains)} parts" if shrunk or parts else f"{kept_in_prefill} of them"
    text = f"{text}; prefill keeps {what}" if kept_in_prefill else text
    text = f"{text}; formats: {outcome.plan.formats}" if outcome.plan.formats else text
    return f"{text}; {len(plan.selections)} blocks of decode read only some of a prompt" if plan.selections else text


def _diagram(outcome: Outcome) -> str:
    if outcome.saved_plan is None:
        return "no block diagram: the model measured as 'unified' is not a selection of the dense model's blocks and channels"
    return draw_diagram(outcome.plan.plan, outcome.block_count)


def _results(outcome: Outcome) -> str:
    measured = outcome.rows[0].calibration.items
    held_out = outcome.rows[0].held_out
    header = [outcome.objective, f"{measured} items searched on", f"{held_out.items} held-out items" if held_out else ""]
    body = []
    for row in outcome.rows:
        values = [row.calibration, row.held_out]
        body.append([row.name, *(f"{v.score:.1f} +- {v.error:.1f}" if v else "" for v in values)])
    return columns([header, *body])


def _fidelity(outcome: Outcome) -> str:
    """Return how near the variants are to the dense model, in two tables that are narrow enough for a small terminal."""
    found = outcome.fidelity
    if found is None:
        return ""
    tables = []
    for heads in (ALONG_ANSWERS, ON_ITEMS):
        body = [[variant, *(cell(metrics) for cell in heads.values())] for variant, metrics in found.variants.items()]
        shown = [column for column in range(len(heads) + 1) if any(row[column] for row in body)]
        tables.append(_narrow([[row[column] for column in shown] for row in (["", *heads], *body)]))
    said = [
        nearness.verdict(found),
        nearness.verdict_on_recovery(found),
        nearness.verdict_on_formats(found),
        nearness.verdict_on_selection(found),
    ]
    about = f"how near to the dense model, on {found.items} held-out item{'s' * (found.items != 1)}"
    about += ":" if found.own_answers is None else f" (loops and length: {found.own_answers} of them):"
    return "\n".join([about, *tables, *filter(None, said)])


def _recovery(outcome: Outcome) -> str:
    """Return how each recovery came out, a line each."""
    if not outcome.recovery:
        return ""
    body = [
        [
            _name_among(outcome.recovery, result),
            f"{result.before.value:.3f}",
            f"{result.after.value:.3f}",
            nearness.taken_away(result),
            f"{result.tokens:,}",
            f"{result.seconds:.{0 if result.seconds >= SHORT else 1}f}",
        ]
        for result in outcome.recovery
    ]
    about = "recovery, KL to dense in nats a token on other texts:"
    return f"{about}\n{_narrow([['', 'before', 'after', 'taken away', 'tokens', 's'], *body])}"


def _name_among(results: Sequence[RecoveryResult], result: RecoveryResult) -> str:
    """Return the name of a recovery, with the stages that it changed where others have the same name."""
    stages = " and ".join(stage for stage, changed in result.changed.items() if changed)
    again = sum(other.name == result.name for other in results) > 1
    return f"{result.name} ({stages})" if again and stages else result.name


def _sample(outcome: Outcome) -> str:
    """Return what each variant answers to one held-out prompt, a line each: that where the dense answer is of middle length."""
    samples = outcome.fidelity.samples if outcome.fidelity is not None else ()
    if not samples:
        return ""
    sample = sorted(samples, key=lambda sample: len(sample.answers.get("dense", "")))[len(samples) // 2]
    width = max(map(len, sample.answers))
    lines = [f"{name.ljust(width)}   {_shortened(answer)}" for name, answer in sample.answers.items()]
    return "\n".join([f"answers to a held-out prompt, ... {_shortened(sample.prompt, end=True)}", *lines])


def _shortened(text: str, *, end: bool = False) -> str:
    """Return a text as one short line: its beginning, or its end."""
    line = visible(" ".join(text.split()))
    if len(line) <= SAMPLE_WIDTH:
        return line
    return line[-SAMPLE_WIDTH:].lstrip() if end else f"{line[: SAMPLE_WIDTH - 4]} ..."


def _figure(name: str, digits: int, scale: float = 1) -> Callable[[Metrics], str]:
    """Return the column of a figure with its standard error; empty where it was not measured."""

    def cell(metrics: Metrics) -> str:
        if name not in metrics:
            return ""
        metric = metrics[name]
        # The dense model beside itself is exact, and an error of nothing would take the room of another column.
        exact = metric.error is None or not round(scale * metric.error, digits)
        return nearness.with_error(replace(metric, error=None) if exact else metric, digits, scale=scale)

    return cell


def _accepted(metrics: Metrics) -> str:
    tau = f" ({metrics['tau'].value:.1f})" if "tau" in metrics else ""
    return f"{_figure('acceptance', 1, 100)(metrics)}{tau}"


def _flips(metrics: Metrics) -> str:
    found = nearness.flips(metrics)
    return "" if found is None else f"{found[0]:.1f}/{found[1]:.1f} ({found[2]:.2f})"


def _loops(metrics: Metrics) -> str:
    return f"{100 * metrics['loops'].value:.0f} %" if "loops" in metrics else ""


def _length(metrics: Metrics) -> str:
    return f"{metrics['length'].value:.2f}" if "length" in metrics else ""


ALONG_ANSWERS: Mapping[str, Callable[[Metrics], str]] = {
    "KL, nats": _figure("kl", 3),
    "top-1, %": _figure("top1", 1, 100),
    "accepted, % (tau)": _accepted,
}
ON_ITEMS: Mapping[str, Callable[[Metrics], str]] = {
    "perplexity": _figure("perplexity", 1),
    "lost/won, % (p)": _flips,
    "loops": _loops,
    "length": _length,
}
"""The columns of both tables: the heading, and the cell of a variant."""


def _gains(outcome: Outcome) -> str:
    if not outcome.gains:
        return ""
    body = [
        [gain.element, f"{gain.gain:+.1f} +- {gain.error:.1f}", "kept" if gain.kept_in_prefill else "removed"]
        for gain in outcome.gains
    ]
    return columns([["block", "gain when kept in prefill", "prefill"], *body])


def _merges(outcome: Outcome) -> str:
    if not outcome.merges:
        return ""
    header = ["merge", "d", "error before training", "after", "of a drop", "decode"]
    body = [
        [
            "+".join(map(str, merge.pair)),
            "" if merge.score is None else f"{merge.score:.4f}",
            f"{merge.untrained:.3g}",
            f"{merge.trained:.3g}",
            f"{merge.drop:.3g}",
            "merged" if merge.chosen else "not chosen" if merge.kept else "no better than a drop",
        ]
        for merge in outcome.merges
    ]
    return columns([header, *body])


def _costs(outcome: Outcome) -> str:
    body = [
        [cost.name, _number(cost.dense), _number(cost.plan), f"{_percent(-cost.saved)} %", cost.unit] for cost in outcome.costs
    ]
    return _narrow([["cost", "dense", "replaced" if outcome.saved_plan is None else "plan", "change", "unit"], *body])


def _percent(share: float) -> str:
    """Return a share as signed percent; zero is +0.0, never -0.0."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _number(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.2f} {letter}"
    return f"{value:g}"


def _notes(outcome: Outcome) -> str:
    return "\n".join(f"note: {note}" for note in outcome.notes)


def _work(outcome: Outcome) -> str:
    counts = outcome.candidates
    return (
        f"{counts['measured']} candidates measured, {counts['cut_short']} cut short, {counts['remembered']} remembered; "
        f"{sum(outcome.seconds.values()):.0f} s, {outcome.peak_memory / 2**30:.1f} GiB at most"
    )


def _next(outcome: Outcome, out: Path) -> str:
    """Name the files and the next commands: show the run, repeat it with another seed, serve the pair."""
    seed = outcome.recipe["seed"] + 1
    plan = f"{out}/plan.json, " if outcome.saved_plan is not None else ""
    again = f"pdtrim-core run {out}/recipe.toml --set seed={seed} --out {out}-seed{seed}"
    pair = ""
    if outcome.saved_plan is not None:
        # No engine runs blocks without a part, and none a pair of mixtures of experts.
        parts = outcome.plan.plan.drops_parts or outcome.plan.plan.shrinks_experts
        then = f"export {out} --to checkpoints" if parts else f"export {out} --to vllm && pdtrim-core serve {out}"
        pair = f"\n       pdtrim-core {then}"
    return f"files: {out}/recipe.toml, {plan}{out}/outcome.json\nnext:  pdtrim-core show {out}\n       {again}{pair}"


def _narrow(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in columns, closer together where a small terminal would fold them."""
    text = columns(rows)
    return text if max(map(len, text.splitlines())) <= NARROW else columns(rows, gap=2)


def columns(rows: Sequence[Sequence[str]], gap: int = 3) -> str:
    """Return rows as text in columns; the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(_line(row, widths, gap) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int], gap: int) -> str:
    cells: Iterable[str] = (
        cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return (" " * gap).join(cells).rstrip()
