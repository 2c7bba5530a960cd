"""One run of a sweep, carried out and evaluated: in this process, or by a worker."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.open_run import load_run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.run_folder import load_outcome
from pdtrim_core.sweeping import evaluating
from pdtrim_core.sweeping.evaluate_table import Evaluate
from pdtrim_core.sweeping.points import Point
from pdtrim_core.sweeping.sweep import PlannedRun


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
class Benchmarks:
    """What the runs of a sweep are evaluated on, if anything, and whether that may run programs that a model wrote."""

    wanted: Evaluate | None = None
    runs_code: bool = False

    def check(self) -> None:
        """Raise `PdtrimError` for tasks that cannot be evaluated."""
        if self.wanted is not None:
            evaluating.check(self.wanted, runs_code=self.runs_code)

    def evaluated(self, end: Ended, shared: RunCache, say: Callable[[str], None]) -> Ended:
        """Evaluate a run that is over, on the model that others share; what was measured before is read.

        Returns it with the problem where that fails.
        """
        if self.wanted is None or end.outcome is None:
            return end
        try:
            run, variants = load_run(end.run.recipe.out, end.run.recipe.host, shared), end.run.point.variants
            evaluating.evaluate(run, self.wanted, variants, say, runs_code=self.runs_code)
        except PdtrimError as error:
            return replace(end, problem=str(error), traceback=traceback.format_exc())
        except Exception as error:  # noqa: BLE001 - a run that cannot be evaluated does not stop the others; it is named at the end
            return replace(end, problem=reason_of(error, kind=True), traceback=traceback.format_exc())
        return end


def carried_out(run: PlannedRun, shared: RunCache, *, fresh: bool) -> Ended:
    """Carry out a run; whatever ends it is told in what is returned."""
    try:
        return Ended(run, pipeline.run(run.recipe, fresh=fresh, shared=shared))
    except PdtrimError as error:
        return Ended(run, None, str(error), traceback.format_exc())
    except Exception as error:  # noqa: BLE001 - whatever ends one run, the others are still wanted; it is named at the end
        return Ended(run, None, reason_of(error, kind=True), traceback.format_exc())


@dataclass(frozen=True)
class SentRun:
    """A run of a sweep on its way to a worker."""

    point: Point
    recipe: Mapping[str, Any]
    fresh: bool
    benchmarks: Benchmarks


@dataclass(frozen=True)
class DoneElsewhere:
    """What a worker tells of a run; the outcome is in its folder."""

    has_outcome: bool
    problem: str
    traceback: str
    said: tuple[str, ...] = field(default=())


def done_in_worker(cache: RunCache, sent: SentRun) -> DoneElsewhere:
    """Carry out a run of a sweep in its folder, and evaluate it; one whose worker was lost is gone on with."""
    said: list[str] = []
    recipe = Recipe.from_data(sent.recipe, where=sent.point.name)
    end = carried_out(PlannedRun(sent.point, recipe), cache, fresh=sent.fresh)
    end = sent.benchmarks.evaluated(end, cache, said.append)
    return DoneElsewhere(end.outcome is not None, end.problem, end.traceback, tuple(said))


def ended_elsewhere(run: PlannedRun, done: DoneElsewhere) -> Ended:
    """Return a run that a worker has carried out, with the outcome from its folder."""
    outcome = load_outcome(run.recipe.out) if done.has_outcome else None
    return Ended(run, outcome, done.problem, done.traceback)
