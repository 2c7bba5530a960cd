"""KL to the dense model of two plans, paired over the prompts that both were measured on."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.fidelity.statistics import ratio
from pdtrim_core.results.task_results import Metric, TaskResult

Sums = dict[tuple[str, int], tuple[float, float]]
"""For each prompt the sum of its KL along the dense model's answer, in nats, and the tokens of that answer."""


def sums_of(results: Iterable[TaskResult]) -> Sums:
    """Return the sums of results of fidelity, by the task, the prompt's name and its place."""
    return {
        (f"{result.task} {answer.item}", number): (answer.values["kl"] * answer.values["tokens"], answer.values["tokens"])
        for result in results
        for number, answer in enumerate(result.answers)
    }


def kl_of(sums: Sums) -> Metric:
    """Return the KL in nats a token, with its standard error over prompts."""
    return ratio([total for total, _ in sums.values()], [count for _, count in sums.values()], higher_is_better=False)


def gap(sums: Sums, others: Sums) -> Metric:
    """Return by how much the KL is above another's on the same prompts, with its standard error."""
    gaps = [sums[prompt][0] - others[prompt][0] for prompt in sums]
    return ratio(gaps, [count for _, count in sums.values()], higher_is_better=False)
