"""The benchmarks of a sweep: what its file requests, in the words of `pdtrim-core eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.results.task_results import Variant
from pdtrim_core.sweeping.evaluate_table import Evaluate

if TYPE_CHECKING:
    from pdtrim_core.harness.evaluate import Options


def check(wanted: Evaluate, *, runs_code: bool, files: bool = True) -> None:
    """Raise `PdtrimError` for tasks that cannot be evaluated, or where the harness is not installed.

    Without `files` it is not asked whether the files of tasks are there.
    """
    from pdtrim_core.harness import check_installed  # noqa: PLC0415 - an extra
    from pdtrim_core.harness.tasks import check_names, hub_tasks  # noqa: PLC0415 - heavy

    check_installed()
    hub = None if wanted.data else hub_tasks()
    check_names(wanted.tasks, _options(wanted).source, hub, runs_code=runs_code, files=files)


def evaluate(
    run: LoadedRun, wanted: Evaluate, variants: Sequence[Variant], say: Callable[[str], None], *, runs_code: bool
) -> None:
    """Evaluate some variants of a run and write the results into its folder. What is known is not measured again."""
    from pdtrim_core.harness.evaluate import Evaluation  # noqa: PLC0415 - heavy, and an extra

    for _ in Evaluation(run, replace(_options(wanted), runs_code=runs_code), say).results(
        wanted.tasks, variants_of(run, variants)
    ):
        # Each result is written when it is there.
        pass


def variants_of(run: LoadedRun, wanted: Sequence[Variant]) -> list[Variant]:
    """Return the variants that a run has of those that are wanted.

    A model that was replaced is unified; without a recovery nothing is unrecovered, and without formats nothing unquantized.
    """
    wanted = [variant for variant in wanted if not run.outcome.why_absent(variant)]
    if run.outcome.saved_plan is not None:
        return list(wanted)
    variants: list[Variant] = ["dense" if variant == "dense" else "unified" for variant in wanted]
    return list(dict.fromkeys(variants))


def _options(wanted: Evaluate) -> Options:
    from pdtrim_core.harness.evaluate import Options  # noqa: PLC0415 - heavy, and an extra
    from pdtrim_core.harness.tasks import Source  # noqa: PLC0415 - the same

    return Options(
        source=Source(Path(wanted.data) if wanted.data else None, wanted.items, wanted.num_fewshot),
        limit=wanted.limit,
        chat_template=wanted.apply_chat_template,
        max_new_tokens=wanted.max_new_tokens,
        prompt_share=wanted.prompt_share,
    )
