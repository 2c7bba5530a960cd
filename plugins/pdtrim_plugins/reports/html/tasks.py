"""Benchmarks: the results in a run folder, by task and variant."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from pdtrim_core.api import Metric, TaskResult
from pdtrim_plugins.reports.html import dots
from pdtrim_plugins.reports.html.dots import Dot
from pdtrim_plugins.reports.html.wording import PLUS_MINUS

VARIANTS = tuple(dots.VARIANTS)
Cells = Mapping[str, Mapping[str, Metric]]
"""The main metric by task and variant."""


def by_task(results: Sequence[TaskResult]) -> Cells:
    """Return the main metric of each task and variant.

    A task that was measured with several settings (shots, limit) has a line for each; its name says how they differ.
    """
    same: dict[str, list[TaskResult]] = defaultdict(list)
    for result in results:
        same[result.task].append(result)
    table: dict[str, dict[str, Metric]] = {}
    for task, group in same.items():
        varying = _varying(group)
        for result in group:
            told = ", ".join(f"{key} {_short(result.settings.get(key))}" for key in varying)
            label = f"{task} ({result.main}{', ' + told if told else ''})"
            table.setdefault(label, {})[result.variant] = result.metrics[result.main]
    return dict(sorted(table.items()))


def _varying(group: Sequence[TaskResult]) -> list[str]:
    """Return the settings in which results of one variant differ."""
    found = set()
    for variant in VARIANTS:
        settings = [result.settings for result in group if result.variant == variant]
        for key in {key for one in settings for key in one}:
            if len({json.dumps(one.get(key), sort_keys=True) for one in settings}) > 1:
                found.add(key)
    return sorted(found)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 16 else text[:12]


def is_share(metric: Metric) -> bool:
    """Tell whether a metric can share a scale from 0 to 100 with others: a share where higher is better."""
    return metric.higher_is_better and 0 <= metric.value <= 1


def dot(metric: Metric) -> Dot:
    """Return a share as percent."""
    return Dot(100 * metric.value, None if metric.error is None else 100 * metric.error)


def told(metric: Metric) -> str:
    """Return a metric with its standard error: a share in percent, any other number in its own unit."""
    scale, digits = (100.0, 1) if is_share(metric) else (1.0, 3)
    error = "" if metric.error is None else f" {PLUS_MINUS} {scale * metric.error:.{digits}f}"
    return f"{scale * metric.value:.{digits}f}{error}"


def best(metrics: Mapping[str, Metric]) -> set[str]:
    """Return the variants with the best value, not counting the dense model."""
    values = {
        variant: metric.value * (1 if metric.higher_is_better else -1)
        for variant, metric in metrics.items()
        if variant != "dense"
    }
    return {variant for variant, value in values.items() if value == max(values.values())} if len(values) > 1 else set()
