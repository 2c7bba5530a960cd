"""Carrying out a sweep: what is not done yet, the runs that share most one after the other, and its table as data."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pdtrim_core.errors import PdtrimError
from pdtrim_core.host.sources import changes
from pdtrim_core.pipeline.executor import Executor
from pdtrim_core.pipeline.run_cache import Key, RunCache
from pdtrim_core.pipeline.run_keys import keys_of, sources_of
from pdtrim_core.pipeline.seen_folders import check_shared
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.run_folder import changed_keys, load_outcome
from pdtrim_core.sweeping.one_run import (
    Benchmarks,
    DoneElsewhere,
    Ended,
    SentRun,
    carried_out,
    done_in_worker,
    ended_elsewhere,
)
from pdtrim_core.sweeping.sweep import PlannedRun, Sweep
from pdtrim_core.wording import counted


@dataclass(frozen=True)
class Begins:
    """A run of a sweep that is about to begin: its number among those to do, and how many these are."""

    run: PlannedRun
    number: int
    count: int


def carry_out(
    sweep: Sweep, *, fresh: bool = False, say: Callable[[str], None] = lambda text: None, executor: Executor | None = None
) -> Iterator[Begins | Ended]:
    """Yield every run of a sweep when it ends, evaluated if the sweep says so, and those that are not done yet when they begin.

    A run that fails does not stop the others. Runs that were done before are read from their folders, unless `fresh`. With an
    `executor` its workers carry out whole runs, side by side, and evaluate them; what is only to be evaluated is done here.
    """
    shared, todo = RunCache(), []
    benchmarks = Benchmarks(sweep.evaluate, sweep.runs_code)
    benchmarks.check()
    for run in sweep.runs:
        done = None if fresh else finished(run.recipe)
        stale = changes(done.environment.sources, sources_of(run.recipe)) if done and done.environment.sources else []
        if done is None or stale:
            todo.append(run)
            if stale:
                say(f"{run.point.name} is carried out again: {'; '.join(stale)}")
        else:
            yield benchmarks.evaluated(Ended(run, done), shared, say)
    if executor is not None:
        yield from _side_by_side(neighbours(todo), sweep.out, benchmarks, executor, fresh=fresh, say=say)
        return
    for number, run in enumerate(neighbours(todo), start=1):
        yield Begins(run, number, len(todo))
        yield benchmarks.evaluated(carried_out(run, shared, fresh=fresh), shared, say)


def _side_by_side(
    runs: Sequence[PlannedRun],
    folder: Path,
    benchmarks: Benchmarks,
    executor: Executor,
    *,
    fresh: bool,
    say: Callable[[str], None],
) -> Iterator[Ended]:
    """Yield runs as workers have carried them out. Each has its own folder and journal, which all machines must see."""
    if not runs:
        return
    check_shared(executor, folder)
    say(f"{counted(len(runs), 'run')} by {counted(executor.count, 'worker')}, side by side")
    coming: dict[Future[DoneElsewhere], PlannedRun] = {}
    for run in runs:
        sent = SentRun(run.point, run.recipe.to_data(), fresh, benchmarks)
        coming[executor.submit(done_in_worker, sent, near=keys_of(run.recipe).model)] = run
    for number, future in enumerate(as_completed(coming), start=1):
        run = coming[future]
        try:
            done = future.result()
        except PdtrimError as error:
            end = Ended(run, None, str(error), traceback.format_exc())
        else:
            for line in done.said:
                say(line)
            end = ended_elsewhere(run, done)
        say(f"{run.point.name} has ended, {number} of {len(runs)}")
        yield end


def finished(recipe: Recipe) -> Outcome | None:
    """Return the outcome of a run that was carried out before, in the same folder with the same recipe."""
    try:
        outcome = load_outcome(recipe.out)
    except PdtrimError:
        return None
    return None if changed_keys(outcome.recipe, recipe.to_data()) else outcome


def neighbours(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return the runs such that those that share most stand together; else as they were."""
    seen: dict[tuple[Key, ...], int] = {}

    def place(run: PlannedRun) -> list[int]:
        order = keys_of(run.recipe).order
        return [seen.setdefault(order[: depth + 1], len(seen)) for depth in range(len(order))]

    return sorted(runs, key=place)


def results(sweep: Sweep, ended: Sequence[Ended]) -> dict[str, Any]:
    """Return a sweep's table as data, a row a run in the order of the file: what `--json` prints."""
    by_name = {end.run.point.name: end for end in ended}
    outcomes = [end.outcome for end in ended if end.outcome is not None]
    environment = outcomes[0].environment if outcomes else None
    return {
        "format": 1,
        "sweep": sweep.name,
        "about": sweep.about,
        "columns": list(sweep.columns),
        "settings": list(sweep.keys),
        "machine": environment.machine if environment else "",
        "versions": environment.versions if environment else {},
        "threads": environment.threads if environment else 0,
        "rows": [_row(by_name[run.point.name]) for run in sweep.runs if run.point.name in by_name],
    }


def _row(end: Ended) -> dict[str, Any]:
    point, outcome = end.run.point, end.outcome
    row: dict[str, Any] = {"run": point.name, "name": point.given_name, "settings": point.settings}
    if outcome is None:
        return {**row, "state": "failed", "problem": end.problem}
    plain = TypeAdapter(Outcome).dump_python(outcome, mode="json")
    plan = None if outcome.saved_plan is None else outcome.plan.plan
    return {
        **row,
        "state": "done",
        "model": outcome.model,
        "block_count": outcome.block_count,
        "objective": outcome.objective,
        "values": {of["name"]: {"calibration": of["calibration"], "held_out": of["held_out"]} for of in plain["rows"]},
        "kl": {
            variant: vars(of["kl"])
            for variant, of in (outcome.fidelity.variants if outcome.fidelity else {}).items()
            if "kl" in of
        },
        "decode": None if plan is None else [str(element) for element in plan.decode],
        "prefill": None if plan is None else [str(element) for element in plan.prefill],
        "selections": None if plan is None else [str(selection) for selection in plan.selections],
        "saved": {cost.name: cost.saved for cost in outcome.costs},
        **{key: plain[key] for key in ("sets", "merges", "recovery", "block_scores", "candidates", "notes", "seconds")},
    }
