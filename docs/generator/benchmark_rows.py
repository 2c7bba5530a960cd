"""The lines of the page of benchmarks: one for each thing that a result compares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECOVERY_KINDS = ("generated", "answers", "text")
"""Kinds of text that a recovery is measured on; older results have no answers."""


def cache_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each budget of a result of `cache_budget`, the least kept first."""
    budgets = sorted(result["budgets"], key=lambda one: one["bytes"])
    slowest = budgets[0]["search_seconds"]
    return [
        [
            result["items"],
            f"`{result['searcher']}` on `{result['objective']}`, {one['candidates']} candidates",
            one["budget"] if one["budget"] == "default" else f"{float(one['budget']) / 1e6:,.0f} MB",
            f"{one['bytes'] / 1e6:,.0f} MB",
            f"{one['search_seconds']:.0f} s",
            f"{1 - one['search_seconds'] / slowest:.0%}",
        ]
        for one in budgets
    ]


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
    return [f"{result['tokens']:,}", f"{result['lr']:g}", f"{own['threads']:.0f}", *seconds, *figures]


def eval_row(result: Mapping[str, Any]) -> list[str]:
    """Return the line of one result of `eval_speed`."""
    cpu, tasks = result["cpu"], result["tasks"]
    seconds = [f"{cpu[who]:.0f} s" for who in ("ours", "theirs")]
    ratios = [f"{cpu['ratio']:.1f} x", f"{result['ratio']:.1f} x"]
    same = [str(result["metrics_differ"]), f"{result['largest_difference']:.0e}"]
    names = ", ".join(task["task"] for task in tasks)
    return [names, str(tasks[0]["items"]), result["dtype"], *seconds, *ratios, *same]


def fidelity_row(result: Mapping[str, Any]) -> list[str]:
    """Return the line of one model in a result of `fidelity_speed`."""
    return [
        result["model"],
        str(result["plans"]),
        str(result["sampled"]),
        f"{result['prompts']}, {result['prompt_tokens']:,} tokens",
        f"{result['tokens']:,}",
        f"{result['ours']:.0f} tokens/s",
        f"{result['theirs']:.0f} tokens/s",
        result["best"].removeprefix("batch "),
        f"{result['ratio']:.1f} x",
        f"{result['largest_difference']:.0e}",
    ]


QUICKSTART_OTHERS = (
    "its decode in both stages",
    "ShortGPT in both stages",
    "ShortGPT as a pair",
    "FLAP in both stages",
    "FLAP as a pair",
)


def quickstart_row(row: Mapping[str, Any]) -> list[str]:
    """Return the line of one seed of a result of `quickstart`."""
    gaps = [f"{value:.3f} +- {error:.3f}" for value, error in (row["nearer_by"][name] for name in QUICKSTART_OTHERS)]
    kl, error = row["kl"]
    holds = "yes" if row["holds"] else "no"
    return [str(row["seed"]), f"{kl:.3f} +- {error:.3f}", f"{row['prefill']:.1%}", *gaps, holds]


def searcher_row(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Return the line of one way in a result of `searchers`."""
    more = f"{row['above_first']:+.4f} +- {row['error']:.4f}"
    figures = [f"{row['kl']:.4f}", more, f"{row['measured']:.0f}"]
    # Results of before the option have none.
    weights = result.get("dtype", "float32")
    return [row["model"], weights, row["way"], str(row["seeds"]), f"{result['minutes']:g}", *figures]


def ray_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the lines of a result of `ray_speedup`, one a run."""
    return [
        [
            result["model"],
            str(one["workers"]),
            str(one["plans"]),
            f"{one['seconds']['search']:.1f} s",
            f"{result['speed-up'][str(one['workers'])]:.2f} x" if str(one["workers"]) in result["speed-up"] else "",
            *(", ".join(f"{megabytes / 1000:.1f} GB" for megabytes in one["megabytes"][sort]) for sort in ("in all", "its own")),
        ]
        for one in result["runs"]
    ]


def list_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the lines of a result of `plan_lists`, one a way to ask."""
    about = [result["items"], result["dtype"], result["objective"], str(result["plans"])]
    return [[*about, way, f"{result['seconds'][way]:.0f} s", f"{ratio:.1f} x"] for way, ratio in result["ratios"].items()]


def parts_row(row: Mapping[str, Any]) -> list[str]:
    """Return what a way of pruning decode costs in KL where its step is as small, and as fast, as without some whole blocks."""

    def nats(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return [
        f"{row['context']:,}",
        row["way"],
        f"{row['step_bytes']:.1%}",
        nats(row["kl_at_bytes"]),
        f"{row['step_seconds']:.1%}",
        nats(row["kl_at_seconds"]),
    ]


def quality_row(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Return the line of one method with one help in one variant in a result of `quality`."""
    shares = [f"{row[name]:.1%}" for name in ("decode bytes", "prefill FLOPs", "K/V")]
    figures = [
        "" if row[name] is None else "{:.3f} +- {:.3f}".format(*row[name]) for name in ("kl", "beyond_best_baseline", "text_kl")
    ]
    help_given = row.get("recovery", "none")
    return [Path(result["model"]).stem, str(result["items"]), row["method"], row["variant"], help_given, *shares, *figures]


def recovery_row(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Return the line of one recovery of one pair in a result of `recovery`."""
    kinds = [
        f"{row[kind]['before']:.3f} -> {row[kind]['after']:.3f} ({row[kind]['error']:.3f}), {100 * row[kind]['taken_away']:.0f} %"
        if kind in row
        else ""
        for kind in RECOVERY_KINDS
    ]
    # Older results have the memory of measuring in it, too.
    held = f"{row['recovering_held'] / 1e9:.1f}" if "recovering_held" in row else ""
    return [Path(result["model"]).stem, row["pair"], row["recovery"], row["learned"], *kinds, f"{row['seconds']:.0f}", held]


def recovered_search_row(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Return the line of one way to search in a result of `recovered_search`."""
    kinds = [f"{row[kind]['kl']:.3f}, {row[kind]['above_first']:+.3f} ({row[kind]['error']:.3f})" for kind in RECOVERY_KINDS]
    return [
        Path(result["model"]).stem,
        row["searcher"],
        row["measured"],
        f"{result['minutes']:g}",
        str(len(row["plans"])),
        *kinds,
    ]


def serve_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the lines of one result of `serve`, one a batch size."""
    return [
        [
            result["vllm"],
            str(result["blocks"]),
            str(row["batch"]),
            *(f"{row[who]:.1f} tokens/s" for who in ("theirs", "ours")),
            f"{row['ratio']:.2f} x",
            f"{row['ideal']:.2f} x",
            f"{row['share_of_ideal']:.0%}",
        ]
        for row in result["batches"]
    ]


def limit_row(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Return the line of one way in a result of `limits`."""
    more = f"{row['above_first']:+.4f} +- {row['error']:.4f}"
    return [result["model"], row["way"], row["decode"], f"{row['kl']:.4f}", more, str(row["measured"])]


def streaming_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each step of a result of `streaming`."""
    return [
        [
            result["shape"],
            f"{result['weights'] / 1e9:.1f} GB",
            f"{result['tokens']:,}",
            row["step"],
            f"{row['read'] / result['weights']:.2f} x",
            f"{row['from_disk'] / 1e9:.1f} GB",
            f"{row['memory'] / 2**30:.1f} GiB",
            f"{row['seconds']:.0f}",
            f"{row['cpu_seconds']:.0f}",
        ]
        for row in result["rows"]
    ]
