"""Tables of results inside pages, from what sweeps and benchmarks wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from generator.benchmarks import BENCHMARKS, versions_of
from generator.formats import formats_table
from generator.markup import table
from pdtrim_core.comparing.compare import Comparison
from pdtrim_core.comparing.objective_cells import Cell
from pdtrim_core.sweeping.table import shown, table_of

RESULTS = Path(__file__).parents[1] / "results"


def results(text: str) -> str:
    """Return a page with its tables of results brought up to date, each from the file that its comment names.

    Of a file with several tables, a second word in the comment names the one.
    """

    def made(found: re.Match[str]) -> str:
        file = next(path for folder in (RESULTS, BENCHMARKS) if (path := folder / f"{found[1]}.json").exists())
        shown_table = shown_of(json.loads(file.read_text(encoding="utf-8")), found[2].strip())
        return f"<!-- results: {found[1]}{found[2]} -->\n\n{shown_table}\n\n<!-- end of results -->"

    return re.sub(r"<!-- results: ([a-z0-9-]+)((?: [a-z-]+)?) -->.*?<!-- end of results -->", made, text, flags=re.DOTALL)


def shown_of(data: Mapping[str, Any], name: str) -> str:
    """Return the table of what a sweep or a benchmark wrote; of several, the one of a name."""
    if data.get("benchmark") == "formats":
        return formats_table(data, name)
    of_benchmarks = {"joint": joint_table, "kv_selection": kv_selection_table, "stages": stages_table, "claims": claims_table}
    if data.get("benchmark") in of_benchmarks:
        return of_benchmarks[data["benchmark"]](data)
    return comparisons(data) if "comparisons" in data else results_table(data)


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


def stages_table(data: Mapping[str, Any]) -> str:
    """Return a row for each set of blocks and length of prompts: the KL of each stage without them."""
    header = ["prompt tokens", "prompts", "removed", "prefill alone", "decode alone", "both", "prefill less decode"]
    rows = [
        [
            f"{row['prompt_tokens']:,}",
            str(row["prompts"]),
            f"{', '.join(map(str, row['blocks']))} ({row['removed']})",
            *(f"{row[stage][0]:.3f}" for stage in ("prefill", "decode", "both")),
            f"{row['prefill_beyond_decode'][0]:+.3f} +- {row['prefill_beyond_decode'][1]:.3f}",
        ]
        for row in data["rows"]
    ]
    return f"{table(header, rows)}\n\n{data['model']}, {data['text']}; {data['machine']}; {versions_of(data)}."


def claims_table(data: Mapping[str, Any]) -> str:
    """Return a row for each thing that a claim is compared with."""
    header = ["the paper says", "where", "beside", "KL", "KL of the other", "nearer by", "seeds", "verdict"]
    rows = [
        [
            row["says"],
            row["where"],
            row["other"],
            f"{row['kl']:.3f}",
            f"{row['kl_of_other']:.3f}",
            f"{row['nearer_by'][0]:+.3f} +- {row['nearer_by'][1]:.3f}",
            ", ".join(f"{one:+.3f}" for one in row["of_seeds"]),
            row["verdict"],
        ]
        for row in data["rows"]
    ]
    return f"{table(header, rows)}\n\n{data['model']}, {data['machine']}; {versions_of(data)}."


def kv_selection_table(data: Mapping[str, Any]) -> str:
    """Return a row for each way to select K/V and length of prompts; ways that select nothing stand in the row of all."""
    header = ["tokens", "decode reads", "blocks that read less", "times fewer bytes", "KL, nats", "acceptance", "needles"]
    rows = [
        [
            f"{row['tokens']:,}",
            row["way"],
            str(len(row["blocks"])),
            f"{row['times_fewer']:.2f}",
            f"{row['kl'][0]:.3f} +- {row['kl'][1]:.3f}",
            f"{row['acceptance'][0]:.0%}",
            f"{row['needle'][0]:.0%}",
        ]
        for row in data["rows"]
        if row["blocks"] or row["way"] == "all"
    ]
    return f"{table(header, rows)}\n\n{data['machine']}; {versions_of(data)}."


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
