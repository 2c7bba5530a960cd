# ruff: noqa: ISC004 - long sentences are written over several lines
"""Tables of results, from what benchmarks and sweeps wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from generator.markup import table
from pdtrim_core.comparing.compare import Comparison
from pdtrim_core.comparing.objective_cells import Cell
from pdtrim_core.sweeping.table import shown, table_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "results"


RESULTS = Path(__file__).parents[1] / "results"


def benchmarks_page() -> str:
    """Return the page of results, from what the benchmarks wrote."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(BENCHMARKS.glob("*.json"))]
    sections = {
        "search_cost": (
            "Measuring candidates",
            "Plans that annealing visits, each measured by pdtrim-core and in the plain way (a physically pruned copy in "
            "lm-evaluation-harness' `HFLM`), in turn in one process. The ratio says how many candidates are measured while the "
            "plain way measures one. As searched, a candidate stops once it cannot be accepted any more; whole, every item of "
            "every candidate is measured, and values are compared.",
            ["items", "format", "as searched", "with set-up", "whole", "values that differ"],
            search_row,
        ),
        "pruning_cost": (
            "A whole pruning",
            "Seconds from opened model to plan, against a loop that removes one block after the other and measures all that are "
            "left each time, in the plain way. Neither merges. Both plans are then measured on items kept apart.",
            ["items", "objective", "ours", "the loop", "ratio", "items kept apart", "ours there", "the loop there"],
            pruning_row,
        ),
        "merge_cost": (
            "One merge",
            "Seconds on the clock to train one merged block with the defaults of the distiller `mse`, each way in a process of "
            "its own. The plain way runs every batch from the first block on, in every epoch; ours keeps the streams in front of "
            "the pair and behind it. "
            "Memory is what the process took at most, Python and torch included, less the weights.",
            ["tokens", "threads", "ours", "nothing kept", "ratio", "memory beyond the weights", "error before", "error after"],
            merge_row,
        ),
        "eval_speed": (
            "Evaluating",
            "Sets of tasks on the dense model: the model class of `pdtrim-core eval` and lm-evaluation-harness' own `HFLM`, task "
            "by task and in turn in one process. Seconds of the processor, from loaded task to metrics.",
            [
                "tasks",
                "items of each",
                "format",
                "ours",
                "`HFLM`",
                "ratio",
                "on the clock",
                "metrics that differ",
                "nats a token",
            ],
            eval_row,
        ),
    }
    parts = [
        "# Benchmarks",
        "Ratios of two things timed in one run, as the scripts under `benchmarks/` wrote them to `benchmarks/results/`. Where it "
        "is not said otherwise they are ratios of processor time, which other work on the machine changes less. To run one of "
        "them again:",
        "<!-- not run: takes minutes, and needs lm_eval -->\n\n```sh\npython benchmarks/search_cost.py --json "
        "benchmarks/results/search-cost-float32.json\npython docs/generate.py\n```",
    ]
    for name, (title, about, header, row) in sections.items():
        own = [result for result in results if result["benchmark"] == name]
        if own:
            parts += [f"## {title}", about, table(header, [row(result) for result in own])]
            parts += [f"- {line}" for result in own for line in remarks(result)]
    for result in (result for result in results if result["benchmark"] == "refinement"):
        parts += ["## Other pruners, refined", refinement_about(result), refinement_table(result)]
    machines = sorted({f"{r['machine']}, {r['threads']} thread{'s' * (r['threads'] > 1)}; {versions_of(r)}" for r in results})
    return "\n\n".join([*parts, "## Machine", *machines])


def refinement_about(result: Mapping[str, Any]) -> str:
    """Return what a result of `refinement` compares."""
    return (
        "Each pruner removes as many parameters as five blocks hold; the splitter gives back to prefill what brings "
        f"{result['threshold']:g} percent of the unified value, element by element. Compared on {result['items']} that neither "
        f"saw, by the margin, {result['dtype']}. The difference is staged less unified, in nats, paired over items."
    )


def refinement_table(result: Mapping[str, Any]) -> str:
    """Return the plans of each pruner, the same in both stages and with a prefill of its own."""
    header = ["pruner", "decode loses", "prefill saves", "given back", "unified", "staged", "difference"]
    rows = [
        [
            f"`{one['pruner']}`",
            f"{one['decode']:.1%} of parameters",
            f"{one['prefill']:.1%} of FLOPs",
            f"{one['given_back']} of {one['elements']}",
            f"{one['unified']:.2f}",
            f"{one['staged']:.2f}",
            f"{one['difference']:+.3f} +- {one['error']:.3f}",
        ]
        for one in result["pruners"]
    ]
    return table(header, rows)


def versions_of(result: Mapping[str, Any]) -> str:
    """Return the versions that a result was made with."""
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items())


def search_row(result: Mapping[str, Any]) -> list[str]:
    """Return the line of one result of `search_cost`."""
    cpu, count = result["cpu"], result["compared"]
    differ = f"{result['points_differ']} of {count} plans, {result['items_differ']} items"
    ratios = [f"{cpu[key]:.1f} x" for key in ("ratio", "ratio_with_once", "ratio_whole")]
    how = f"{result['dtype']}, compiled" if result.get("compiled") else result["dtype"]
    return [result["items"], how, *ratios, differ]


def pruning_row(result: Mapping[str, Any]) -> list[str]:
    """Return the line of one result of `pruning_cost`."""
    apart = result["held_out"]
    values = [f"{apart[who]['mean']:.3f} +- {apart[who]['mean_error']:.3f} {result['unit']}" for who in ("ours", "theirs")]
    seconds = [f"{result[who]:.0f} s" for who in ("ours", "theirs")]
    return [result["items"], result["objective"], *seconds, f"{result['ratio']:.1f} x", str(result["apart"]), *values]


def merge_row(result: Mapping[str, Any]) -> list[str]:
    """Return the line of one result of `merge_cost`."""
    own = result["ways"]["ours"]
    seconds = [f"{result[who]:.0f} s" for who in ("ours", "theirs")]
    figures = [
        f"{result['ratio']:.1f} x",
        f"{own['beyond_weights'] / 1e9:.2f} GB",
        f"{own['untrained']:.3g}",
        f"{own['trained']:.3g}",
    ]
    return [f"{result['tokens']:,}", f"{own['threads']:.0f}", *seconds, *figures]


def eval_row(result: Mapping[str, Any]) -> list[str]:
    """Return the line of one result of `eval_speed`."""
    cpu, tasks = result["cpu"], result["tasks"]
    seconds = [f"{cpu[who]:.0f} s" for who in ("ours", "theirs")]
    ratios = [f"{cpu['ratio']:.1f} x", f"{result['ratio']:.1f} x"]
    same = [str(result["metrics_differ"]), f"{result['largest_difference']:.0e}"]
    names = ", ".join(task["task"] for task in tasks)
    return [names, str(tasks[0]["items"]), result["dtype"], *seconds, *ratios, *same]


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Return what else a result says: where the time goes, or which plans were found."""
    if result["benchmark"] in ("merge_cost", "eval_speed"):
        return []
    if result["benchmark"] == "search_cost":
        shares = result["shares"]
        floor = sum(share for part, share in shares.items() if part.startswith("matrix"))
        told = ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
        return [
            f"{search_row(result)[1]}: {told}. With its matrix products and nothing else a candidate would take {floor:.0%} of "
            f"its time, so {1 / floor:.1f} x is the most that is left to win there. {result['cut_short']} of "
            f"{result['compared']} plans were stopped early; set-up took {result['once_seconds']:.1f} s. "
            f"On the clock: {result['ratio']:.1f} x as searched, at a load of {result['load']}."
        ]
    gain, plans = result["held_out"]["gain"], result["plans"]
    return [
        f"{result['objective']}: ours is {plans['ours']}; the loop removes {plans['theirs']} in {result['measurements']} "
        f"measurements. Ours less the loop's, item by item: {gain['mean']:.3f} +- {gain['mean_error']:.3f} {result['unit']}. On "
        f"the clock, the two at different times: {result['clock']['ratio']:.1f} x."
    ]


def results(text: str) -> str:
    """Return a page with its tables of results brought up to date, each from the file that its comment names."""

    def made(found: re.Match[str]) -> str:
        file = next(path for folder in (RESULTS, BENCHMARKS) if (path := folder / f"{found[1]}.json").exists())
        data = json.loads(file.read_text(encoding="utf-8"))
        if data.get("benchmark") == "joint":
            shown_table = joint_table(data)
        else:
            shown_table = comparisons(data) if "comparisons" in data else results_table(data)
        return f"<!-- results: {found[1]} -->\n\n{shown_table}\n\n<!-- end of results -->"

    return re.sub(r"<!-- results: ([a-z0-9-]+) -->.*?<!-- end of results -->", made, text, flags=re.DOTALL)


def joint_table(data: Mapping[str, Any]) -> str:
    """Return the differences between `joint` and other ways, and where they were measured."""
    header = ["objective", "prefill at most", "joint less", "mean difference", "standard error", "a seed"]
    rows = [
        [
            one["objective"],
            f"{one['ceiling']:.0%}",
            one["against"],
            f"{one['mean_difference']:+.4f}",
            f"{one['standard_error']:.4f}",
            ", ".join(f"{mean:+.3f}" for mean in one["a_seed"]),
        ]
        for one in data["differences"]
    ]
    return f"{table(header, rows)}\n\n{data['dtype']}, {data['machine']}; {versions_of(data)}."


def comparisons(data: Mapping[str, Any]) -> str:
    """Return a sweep's runs side by side on benchmarks: a column a method, a row a benchmark."""
    tables = [TypeAdapter(Comparison).validate_python(one) for one in data["comparisons"]]
    return "\n\n".join([*(side_by_side(one) for one in tables), where_of(data)])


def side_by_side(comparison: Comparison) -> str:
    """Return one comparison: values, the best of the pruned ones in bold, and differences of the averages to the first."""
    rows = []
    for column in comparison.columns:
        values = [row.cells[column.name].value if column.name in row.cells else None for row in comparison.rows]
        title = column.name if column.metric == "acc" else f"{column.name}, {column.metric}"
        rows.append([title, *(_value(value, n in comparison.best.get(column.name, ())) for n, value in enumerate(values))])
    averages = [row.average for row in comparison.rows if row.average is not None]
    if len(averages) == len(comparison.rows):
        best = comparison.best.get("average", ())
        rows.append(["average", *(_value(average.value, n in best) for n, average in enumerate(averages))])
        rows.append(["to the first", *("" if average.difference is None else _gap(average) for average in averages)])
    for title, share in (("prefill loses", "prefill_removed"), ("decode loses", "decode_removed")):
        rows.append([title, *(f"{100 * (getattr(row, share) or 0):.1f} %" for row in comparison.rows)])
    notes = "".join(f"\n\n{note}." for note in comparison.notes)
    return table(["", *(row.name for row in comparison.rows)], rows) + notes


def _value(value: float | None, best: bool) -> str:  # noqa: FBT001 - said by its name where it is called
    if value is None:
        return ""
    shown_value = f"{value:,.0f}" if value >= 10_000 else f"{value:.1f}"
    return f"**{shown_value}**" if best else shown_value


def _gap(cell: Cell) -> str:
    error = "" if cell.difference_error is None else f" +- {cell.difference_error:.1f}"
    return f"{cell.difference:+.1f}{error}"


def results_table(data: Mapping[str, Any]) -> str:
    """Return a sweep's table, and where and how long it ran; scores alone stand one block a row."""
    if data["columns"] == ["scores"]:
        heading = ["block", *(" ".join(shown(value) for value in row["settings"].values()) for row in data["rows"])]
        blocks = zip(*(row["block_scores"] for row in data["rows"]), strict=True)
        rows = [[str(block), *(f"{score:.4g}" for score in scores)] for block, scores in enumerate(blocks)]
    else:
        heading, rows = table_of(data)
    return f"{table(heading, rows)}\n\n{where_of(data)}"


def where_of(data: Mapping[str, Any]) -> str:
    """Return where and how long a sweep ran, its evaluations not counted."""
    versions, threads = data["versions"], data["threads"]
    seconds = sum(sum(row["seconds"].values()) for row in data["rows"])
    return (
        f"pdtrim-core {versions['pdtrim-core']}, torch {versions['torch'].partition('+')[0]}, {data['machine']}, "
        f"{threads} thread{'s' * (threads != 1)}: {seconds:.0f} s in all."
    )
