"""Every hook, on one page.

The name tells the sort: a plural noun is a registry (yield component classes, all are kept), a verb phrase is a question
(answer, or return None to let the next plugin try), a past tense is an event (look, do not touch; a listener that fails
is muted).

A plugin marks its functions with `hookimpl` and is found through the entry point group `pdtrim`::

    from pdtrim_core.api import SimilarityScorer, hookimpl

    class NormRatio(SimilarityScorer):
        name = "norm-ratio"

        def similarity(self, before, after):
            return -(after.norm(dim=-1) / before.norm(dim=-1) - 1).abs()

    @hookimpl
    def pdtrim_scorers():
        yield NormRatio

pluggy calls them, so the options of `hookimpl` work: the plugin that was loaded last is called first, `tryfirst=True` comes
before all others and `trylast=True` after. `wrapper=True` runs around the functions of all plugins: it yields once, is sent
what they answered (a registry: one list of classes for each plugin; an event: nothing), and returns what to say instead, or
None to leave it as it is. A class that a wrapper adds to a registry is its plugin's own. A wrapper that fails is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pdtrim_core.api.item_kinds import CalibrationSource, Objective
    from pdtrim_core.api.kv_selector import KvSelector
    from pdtrim_core.api.layer_kinds import Quantizer, Recovery
    from pdtrim_core.api.model_source import ModelSource
    from pdtrim_core.api.plan_kinds import Distiller, Pruner, Scorer, Searcher, StageSplitter
    from pdtrim_core.api.writer_kinds import Exporter, Report
    from pdtrim_core.data.readings import Candidate
    from pdtrim_core.model.block_layout import BlockLayout
    from pdtrim_core.plan.elements import Merge
    from pdtrim_core.results.outcome import Outcome
    from pdtrim_core.results.recovery import RecoveryResult
    from pdtrim_core.results.task_results import TaskResult

PROJECT = "pdtrim"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# Registries


@hookspec
def pdtrim_scorers() -> Iterable[type[Scorer]]:  # type: ignore[empty-body]
    """Yield classes that score blocks and pairs."""


@hookspec
def pdtrim_searchers() -> Iterable[type[Searcher]]:  # type: ignore[empty-body]
    """Yield classes that search for what decode loses."""


@hookspec
def pdtrim_pruners() -> Iterable[type[Pruner]]:  # type: ignore[empty-body]
    """Yield classes of other methods that find what decode loses."""


@hookspec
def pdtrim_distillers() -> Iterable[type[Distiller]]:  # type: ignore[empty-body]
    """Yield classes that train one block to replace two."""


@hookspec
def pdtrim_splitters() -> Iterable[type[StageSplitter]]:  # type: ignore[empty-body]
    """Yield classes that decide which elements of a removal are kept in prefill."""


@hookspec
def pdtrim_recoveries() -> Iterable[type[Recovery]]:  # type: ignore[empty-body]
    """Yield classes that give the layers of a pruned pair other weights."""


@hookspec
def pdtrim_quantizers() -> Iterable[type[Quantizer]]:  # type: ignore[empty-body]
    """Yield classes that give the linear layers of a stage another number format."""


@hookspec
def pdtrim_kv_selectors() -> Iterable[type[KvSelector]]:  # type: ignore[empty-body]
    """Yield classes that say which tokens of a prompt the blocks of decode read."""


@hookspec
def pdtrim_objectives() -> Iterable[type[Objective]]:  # type: ignore[empty-body]
    """Yield classes that value a plan item by item."""


@hookspec
def pdtrim_calibrations() -> Iterable[type[CalibrationSource]]:  # type: ignore[empty-body]
    """Yield classes that give samples."""


@hookspec
def pdtrim_model_sources() -> Iterable[type[ModelSource]]:  # type: ignore[empty-body]
    """Yield classes that open models."""


@hookspec
def pdtrim_exporters() -> Iterable[type[Exporter]]:  # type: ignore[empty-body]
    """Yield classes that write what other programs use."""


@hookspec
def pdtrim_reports() -> Iterable[type[Report]]:  # type: ignore[empty-body]
    """Yield classes that report what a run did."""


# Questions


@hookspec(firstresult=True)
def pdtrim_find_blocks(model: Any) -> BlockLayout | None:
    """Say where a transformers model keeps its list of blocks; None for a family you do not know."""


# Events


@hookspec
def pdtrim_run_started(recipe: Mapping[str, Any], out: Path, steps: Sequence[str]) -> None:
    """A run begins, with its resolved recipe (the data of recipe.toml), its folder, and the names of its steps in order.

    A run may leave a step out, and may come to one again.
    """


@hookspec
def pdtrim_step_started(step: str, about: int | None) -> None:
    """A step of the pipeline begins, with about how many measurements it will take (None: it takes none)."""


@hookspec
def pdtrim_note_made(note: str) -> None:
    """The run has something to say: a preview of the search, a warning, a choice it made."""


@hookspec
def pdtrim_candidate_measured(candidate: Candidate) -> None:
    """A plan has its value: measured, remembered, or cut short."""


@hookspec
def pdtrim_work_advanced(what: str, number: int, count: int, share: float) -> None:
    """Work inside a step has done this share of all that it will do: 0 when it begins, 1 at its end.

    `what` tells it from other work of the step, such as `merges`; the part at work is the number-th of so many, counted from 1,
    with a number of 0 where there are no parts: of `candidates`, `count` are measured side by side. What recoveries do is told by
    `pdtrim_recovery_advanced`.
    """


@hookspec
def pdtrim_merge_trained(merge: Merge, trained: float, untrained: float) -> None:
    """A merged block is trained, or was found in the store; errors are mean squared differences of the hidden states."""


@hookspec
def pdtrim_recovery_advanced(name: str, number: int, count: int, share: float) -> None:
    """A recovery, the number-th of so many counted from 1, has done this share of its work: 0 when it begins, 1 at its end.

    A number of 0 stands for the texts that recoveries are computed from, while the dense model writes them.
    """


@hookspec
def pdtrim_recovery_finished(result: RecoveryResult) -> None:
    """How a recovery came out is known: it was carried out, or was found in the folder of the run."""


@hookspec
def pdtrim_fidelity_measured(result: TaskResult) -> None:
    """How near a variant is to the dense model is known: measured, or found in the folder of the run."""


@hookspec
def pdtrim_step_finished(step: str, seconds: float) -> None:
    """A step of the pipeline has ended."""


@hookspec
def pdtrim_run_finished(outcome: Outcome) -> None:
    """A run has come to its end, and its outcome is written."""


@hookspec
def pdtrim_run_ended() -> None:
    """A run is over: finished, failed or interrupted. Put away what you opened."""
