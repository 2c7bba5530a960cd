"""Which results share a column: those of one task that were measured with the same settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdtrim_core.results.task_results import TaskResult, key_of, path_of

OF_THE_ROW = ("plan", "weights", "first_token")
"""Settings that describe the model and not the task: rows of a table differ in them."""

Found = Sequence[tuple[Path, TaskResult]]
"""Results, each with the run folder that it was found in."""


@dataclass(frozen=True)
class Column:
    """A task in a table, and the metric of it that is shown; `percent` metrics are shares of 1 and are shown as percent."""

    name: str
    metric: str
    higher_is_better: bool = True
    percent: bool = True

    @property
    def scale(self) -> int:
        """By what a value is multiplied to be shown."""
        return 100 if self.percent else 1


def choose(
    rows: Mapping[str, Found], tasks: Sequence[str], notes: list[str]
) -> tuple[tuple[Column, ...], dict[str, dict[str, TaskResult]]]:
    """Return a column a task, and the results in it by row.

    Of several settings those win that most rows have, then the newest; the notes say what is left out.
    """
    columns, chosen = [], {}
    for task in tasks:
        groups = _groups(rows, task)
        newest = {key: max(time for time, _ in group.values()) for key, group in groups.items()}
        wanted = max(groups, key=lambda key: (len(groups[key]), newest[key]))
        found = {name: result for name, (_, result) in groups[wanted].items()}
        shown = next(iter(found.values()))
        for key in groups.keys() - {wanted}:
            other = next(result for _, result in groups[key].values())
            names = ", ".join(groups[key])
            notes.append(f"{task}: shown with {_differing(shown, other)}; left out with {_differing(other, shown)} ({names})")
        columns.append(_column(task, list(found.values())))
        chosen[task] = found
    return tuple(columns), chosen


def _groups(rows: Mapping[str, Found], task: str) -> dict[str, dict[str, tuple[float, TaskResult]]]:
    """Return the results of a task by settings, and then by row with the time of the file; of a row's the newest."""
    groups: dict[str, dict[str, tuple[float, TaskResult]]] = {}
    for name, results in rows.items():
        for run, result in results:
            if result.task == task:
                path = path_of(run, task, result.variant, result.settings)
                time = path.stat().st_mtime if path.exists() else 0.0
                of_rows = groups.setdefault(key_of({**_asked(result), "main": result.main}), {})
                if name not in of_rows or of_rows[name][0] < time:
                    of_rows[name] = (time, result)
    return groups


def _asked(result: TaskResult) -> dict[str, object]:
    return {key: value for key, value in result.settings.items() if key not in OF_THE_ROW}


def _differing(one: TaskResult, other: TaskResult) -> str:
    own, its = {**_asked(one), "metric": one.main}, {**_asked(other), "metric": other.main}
    return ", ".join(f"{key} = {own[key]}" for key in sorted(own) if own[key] != its.get(key)) or "fewer settings"


def _column(task: str, results: Sequence[TaskResult]) -> Column:
    metrics = [result.metrics[result.main] for result in results]
    higher = metrics[0].higher_is_better
    return Column(task, results[0].main, higher, percent=higher and all(-1 <= metric.value <= 1 for metric in metrics))
