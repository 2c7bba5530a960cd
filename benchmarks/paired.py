"""KL to the dense model of variants of runs, paired over the prompts that they were measured on."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.fidelity.measure import Subject
from pdtrim_core.fidelity.statistics import ratio
from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.results.task_results import ItemAnswer, Metric, Variant

Sums = dict[tuple[str, int], tuple[float, float]]
"""For each prompt the sum of its KL along the dense model's answer, in nats, and the tokens of that answer."""


def sums_of(answers: Iterable[ItemAnswer]) -> list[tuple[float, float]]:
    """Return what `Sums` has of each prompt, from the results of fidelity, in their order."""
    return [(one.values["kl"] * one.values["tokens"], one.values["tokens"]) for one in answers]


def kl_of(sums: Sums) -> Metric:
    """Return the KL in nats a token, with its standard error over prompts."""
    return ratio([total for total, _ in sums.values()], [count for _, count in sums.values()], higher_is_better=False)


def gap(sums: Sums, others: Sums) -> Metric:
    """Return by how much the KL is above another's on the same prompts, with its standard error."""
    gaps = [sums[prompt][0] - others[prompt][0] for prompt in sums]
    return ratio(gaps, [count for _, count in sums.values()], higher_is_better=False)


def subject_of(run: LoadedRun, variant: Variant) -> Subject:
    """Return a variant of a run as what fidelity measures."""
    model = run.model_of(variant)
    return Subject(
        model,
        run.plan_of(variant),
        run.modules_of(variant),
        first_token=run.outcome.plan.first_token if variant == "staged" else "decode",
        dense=None if model is run.dense else run.dense,
    )
