"""Carrying out a sweep: what is not done yet, the runs that share most one after the other, and its table as data."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.host.sources import changes
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.open_run import load_run
from pdtrim_core.pipeline.run_cache import Key, RunCache
from pdtrim_core.pipeline.run_keys import keys_of, sources_of
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.run_folder import changed_keys, load_outcome
from pdtrim_core.sweeping import evaluating
from pdtrim_core.sweeping.sweep import PlannedRun, Sweep


@dataclass(frozen=True)
class Ended:
    """A run of a sweep that is over: its outcome, or why it or its evaluations have none, and where that came from.

    The traceback is text, since an exception would keep alive what the run had in memory.
    """

    run: PlannedRun
    outcome: Outcome | None
    problem: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Begins:
    """A run of a sweep that is about to begin: its number among those to do, and how many these are."""

    run: PlannedRun
    number: int
    count: int


def carry_out(sweep: Sweep, *, fresh: bool = False, say: Callable[[str], None] = lambda text: None) -> Iterator[Begins | Ended]:
    """Yield every run of a sweep when it ends, evaluated if the sweep says so, and those that are not done yet when they begin.

    A run that fails does not stop the others. Runs that were done before are read from their folders, unless `fresh`.
    """
    shared, todo = RunCache(), []
    evaluated = Evaluator(sweep, shared, say)
    for run in sweep.runs:
        done = None if fresh else finished(run.recipe)
        stale = changes(done.environment.sources, sources_of(run.recipe)) if done and done.environment.sources else []
        if done is None or stale:
            todo.append(run)
            if stale:
                say(f"{run.point.name} is carried out again: {'; '.join(stale)}")
        else:
            yield evaluated(Ended(run, done))
    for number, run in enumerate(neighbours(todo), start=1):
        yield Begins(run, number, len(todo))
        yield evaluated(_carry_out(run, shared, fresh=fresh))


class Evaluator:
    """Evaluates runs of a sweep that are over, on the model that they share; without benchmarks it leaves them as they are.

    Raises `PdtrimError` for tasks that cannot be evaluated, before any run begins.
    """

    def __init__(self, sweep: Sweep, shared: RunCache, say: Callable[[str], None]) -> None:
        self._parts = (sweep.host, shared, say)
        self._wanted = sweep.evaluate
        self._runs_code = sweep.runs_code
        if self._wanted is not None:
            evaluating.check(self._wanted, runs_code=self._runs_code)

    def __call__(self, end: Ended) -> Ended:
        """Evaluate a run; what was measured before is read. Returns it with the problem where that fails."""
        if self._wanted is None or end.outcome is None:
            return end
        host, shared, say = self._parts
        try:
            run, variants = load_run(end.run.recipe.out, host, shared), end.run.point.variants
            evaluating.evaluate(run, self._wanted, variants, say, runs_code=self._runs_code)
        except PdtrimError as error:
            return replace(end, problem=str(error), traceback=traceback.format_exc())
        except Exception as error:  # noqa: BLE001 - a run that cannot be evaluated does not stop the others; it is named at the end
            return replace(end, problem=reason_of(error, kind=True), traceback=traceback.format_exc())
        return end


def _carry_out(run: PlannedRun, shared: RunCache, *, fresh: bool) -> Ended:
    try:
        return Ended(run, pipeline.run(run.recipe, fresh=fresh, shared=shared))
    except PdtrimError as error:
        return Ended(run, None, str(error), traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - whatever ends one run, the others are still wanted; it is named at the end
        return Ended(run, None, reason_of(error, kind=True), traceback.format_exc())


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
