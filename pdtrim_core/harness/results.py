"""What the harness returns, in the form in which a run folder keeps it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from pdtrim_core.results.task_results import ItemAnswer, Metric

PREFERRED = ("acc", "word_perplexity", "pass@1", "prompt_level_strict_acc", "exact_match")
"""The metric that tables show, the first of these that a task has."""


def metrics_of(found: Mapping[str, Any], task: str) -> dict[str, Metric]:
    """Return the metrics of a task, and behind them those of the parts of a group: metric/part."""
    parts = [name for name in found["results"] if name != task]
    metrics = {}
    for name in (task, *parts):
        if name in found["results"]:
            own = found["results"][name]
            behind = "" if name == task else f"/{str(own.get('alias', name)).strip(' -')}"
            higher = found["higher_is_better"].get(name) or {}
            for metric, value, error in _values(own):
                kind = metric.partition(",")[0]
                metrics[f"{metric}{behind}"] = Metric(value, error, bool(higher.get(kind, True)))
    return metrics


def _values(own: Mapping[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    """Yield metric, value and standard error; a filter is named where there are several."""
    keys = [key for key in own if "," in key and "_stderr," not in key]
    several = len({key.partition(",")[2] for key in keys}) > 1
    for key in keys:
        metric, _, kept = key.partition(",")
        error = own.get(f"{metric}_stderr,{kept}")
        if isinstance(own[key], int | float):
            shown = key if several else metric
            yield shown, float(own[key]), float(error) if isinstance(error, int | float) and math.isfinite(error) else None


def with_errors(metrics: Mapping[str, Metric], answers: Sequence[ItemAnswer]) -> dict[str, Metric]:
    """Return metrics with the standard error of the mean over items, where the harness gave none and the metric is that mean.

    It gives none to a group that has a part with a single item.
    """
    return {name: replace(metric, error=_error(metric, name, answers)) for name, metric in metrics.items()}


def _error(metric: Metric, name: str, answers: Sequence[ItemAnswer]) -> float | None:
    values = [answer.values[name] for answer in answers if name in answer.values]
    if metric.error is not None or len(values) < 2 or not math.isclose(fmean(values), metric.value, abs_tol=1e-9):
        return metric.error
    return stdev(values) / math.sqrt(len(values))


def main_of(metrics: Mapping[str, Metric]) -> str:
    """Return the metric that tables show."""
    return next((name for name in PREFERRED if name in metrics), next(iter(metrics)))


def answers_of(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[ItemAnswer, ...]:
    """Return what came out for each item, in order, of all parts of a task."""
    answers = []
    for task, of_task in samples.items():
        several = len({sample["filter"] for sample in of_task}) > 1
        by_item: dict[int, dict[str, float]] = {}
        said: dict[int, ItemAnswer] = {}
        for sample in of_task:
            number = int(sample["doc_id"])
            values = by_item.setdefault(number, {})
            for metric in sample["metrics"]:
                value = _number(metric, sample[metric])
                if value is not None:
                    values[f"{metric},{sample['filter']}" if several else metric] = value
            if number not in said:
                logprobs = _logprobs(sample)
                answer = logprobs.index(max(logprobs)) if logprobs else sample["resps"][0][0]
                said[number] = ItemAnswer(
                    _name(sample["doc"], f"{task}/{number}"), {}, answer, logprobs, _target(sample, len(logprobs))
                )
        answers += [replace(said[number], values=values) for number, values in sorted(by_item.items())]
    return tuple(answers)


def _number(metric: str, value: Any) -> float | None:
    """Return an item's value; of running text it comes as a sum of log-probabilities and what that is divided by."""
    match value:
        case bool() | int() | float():
            return float(value)
        case list() if value:
            return sum(map(float, value)) / len(value)
        case (float(total), int(count)) if "perplexity" in metric:
            return math.exp(min(-total / count, 700))
        case (float(total), int(count)) if metric == "bits_per_byte":
            return -total / count / math.log(2)
    number: Any = value if getattr(value, "ndim", 1) == 0 else None  # one of numpy's
    return None if number is None else float(number)


def _name(doc: Any, otherwise: str) -> str:
    names = (doc.get(key) for key in ("id", "task_id", "key")) if isinstance(doc, Mapping) else ()
    return next((str(name) for name in names if name is not None), otherwise)


def _logprobs(sample: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the log-probability of each choice of an item, in nats; nothing where a text was made."""
    made = [of_request[0] for of_request in sample["resps"]]
    return tuple(float(logprob) for logprob, _ in made) if isinstance(made[0], tuple | list) else ()


def _target(sample: Mapping[str, Any], choices: int) -> int | None:
    """Return the number of the right choice, where it is one of several."""
    target = str(sample.get("target"))
    return int(target) if target.isdecimal() and int(target) < choices and choices > 1 else None
