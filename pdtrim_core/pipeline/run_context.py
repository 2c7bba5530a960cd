"""What all steps of one run share: its recipe, the plugins, its folder, its events, and what other runs left in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from random import Random

from pdtrim_core.data.readings import Candidate
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.threads import threads
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.events import RunEvents
from pdtrim_core.pipeline.executor import Executor
from pdtrim_core.pipeline.run_cache import Key, RunCache
from pdtrim_core.pipeline.run_keys import digest_of
from pdtrim_core.pipeline.spent import Spent
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.run_folder import RunFolder, open_run_folder
from pdtrim_core.search.driver import Ledger, Measure, MeasureTogether


@dataclass(frozen=True)
class RunContext:
    """The recipe of a run, the host of its plugins, its folder, its events, the cache that runs share, and what was spent.

    `executor` are the workers that measure its plans; without one they are measured here.
    """

    recipe: Recipe
    host: PluginHost
    folder: RunFolder
    events: RunEvents
    cache: RunCache
    spent: Spent
    fresh: bool = False
    """Whether nothing that earlier runs stored is used, but for the converted model."""
    executor: Executor | None = None

    def rng(self, step: str) -> Random:
        """Return the random numbers of a step, which depend only on the recipe's seed and on the step's name."""
        return Random(f"{self.recipe.settings.seed} {step}")  # noqa: S311 - reproducible draws, nothing secret

    def ledger(
        self,
        part: str,
        measure: Measure,
        *,
        by: Callable[[Plan], Key],
        items: int,
        has_best: bool = True,
        together: MeasureTogether | None = None,
    ) -> Ledger:
        """Return the ledger of one part of the journal, of so many items: it knows what the journal has, and adds to it.

        `by` tells what the value of a plan depends on: what was measured by something else is measured again. Listeners are
        notified of each measurement; without `has_best`, without a best so far. `together` measures several plans side by side.
        """

        def notify(candidate: Candidate) -> None:
            self.spent.save()
            self.host.tell("pdtrim_candidate_measured", candidate=candidate if has_best else replace(candidate, best=None))

        def measured_by(plan: Plan) -> str:
            return digest_of(by(plan))

        return Ledger(
            measure,
            together=together,
            known=self.folder.recall(part, measured_by, items),
            record=lambda plan, reading: self.folder.note(part, plan, reading, measured_by(plan)),
            notify=notify,
        )


@contextmanager
def open_run_context(
    recipe: Recipe,
    host: PluginHost,
    *,
    fresh: bool = False,
    cache: RunCache | None = None,
    executor: Executor | None = None,
) -> Iterator[RunContext]:
    """Open the folder of a run, to begin it or to go on with it, with the threads that the recipe sets, or that workers have.

    Raises `PdtrimError` when it holds a run of another recipe (unless `fresh`), or when a run is working in it now.
    """
    with (
        open_run_folder(recipe.out, recipe.to_data(), fresh=fresh) as folder,
        threads(recipe.settings.evaluation.threads or (None if executor is None else executor.threads)),
        RunEvents(host) as events,
    ):
        for line in folder.lost:
            events.note(line)
        spent = Spent(folder.path, events)
        events.saved = spent.save
        try:
            yield RunContext(recipe, host, folder, events, cache or RunCache(), spent, fresh, executor)
        except BaseException:
            # A disk that is full has been told already.
            with suppress(PdtrimError):
                spent.end()
            raise
