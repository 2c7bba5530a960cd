"""KL to the dense model of variants of runs, paired over the prompts that they were measured on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pdtrim_core.api import Item, write_whole
from pdtrim_core.data.items import digest_of
from pdtrim_core.fidelity.measure import Subject, measure_forced
from pdtrim_core.fidelity.statistics import ratio
from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.pipeline.run_keys import dense_code
from pdtrim_core.results.task_results import ItemAnswer, Metric, Variant

Sums = dict[tuple[str, int], tuple[float, float]]
"""For each prompt the sum of its KL along the dense model's answer, in nats, and the tokens of that answer."""


def sums_of(answers: Iterable[ItemAnswer]) -> list[tuple[float, float]]:
    """Return what `Sums` has of each prompt, from the results of fidelity, in their order."""
    return [(one.values["kl"] * one.values["tokens"], one.values["tokens"]) for one in answers]


def kept_sums(file: Path, subjects: Sequence[Subject], items: Sequence[Item], *, length: int, plans: Sequence[str]) -> list[Sums]:
    """Return the KL of variants along the dense model's answers, prompt by prompt, or read it from a file of the same.

    An answer has `length` tokens at most. `plans` has a string a variant that tells it from others, weights included.
    """
    code = dense_code(subjects[0].dense or subjects[0].model)
    about = {"items": digest_of(items), "code": code, "length": length, "plans": list(plans)}
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.get("about") != about:
        found = measure_forced(subjects, items, length=length, code=code)
        kept = {"about": about, "sums": [sums_of(one.answers) for one in found]}
        write_whole(file, json.dumps(kept) + "\n")
    return [{("", number): tuple(one) for number, one in enumerate(own)} for own in kept["sums"]]


def variants_of(run: LoadedRun, variants: Sequence[Variant], items: Sequence[Item], file: Path, *, length: int) -> list[Sums]:
    """Return what `kept_sums` does of variants of a run."""
    subjects = [subject_of(run, variant) for variant in variants]
    return kept_sums(file, subjects, items, length=length, plans=[run.plan_digest(variant) for variant in variants])


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
