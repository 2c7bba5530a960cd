"""Runs side by side: methods by tasks, with paired differences to the first row, what each stage loses, and what that costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from pdtrim_core.comparing.groups import Column, choose
from pdtrim_core.comparing.objective_cells import Cell, RowSource, objective_cells
from pdtrim_core.data.readings import standard_error
from pdtrim_core.errors import PdtrimError, did_you_mean
from pdtrim_core.fidelity.statistics import ratio
from pdtrim_core.results.fidelity import TASK
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.run_folder import load_outcome
from pdtrim_core.results.task_results import TaskResult, Variant, results_in

COMPARISON_FORMAT = 1
NOT_PRUNING = ("open the model", "evaluate", "fidelity", "write")
"""Steps of a run that are no part of its pruning time."""
RECOVERING, QUANTISING, SELECTING = "recover", "quantise", "select K/V"
"""The steps that gave the pair other weights, other formats, and less to read: no part of the time of a pair without them."""
UNQUANTIZED: tuple[Variant, ...] = ("unrecovered", "unquantized")
"""Pairs whose weights have the number format of the model."""
SAME = 1e-6
"""How near the mean over items must be to a metric's value for the metric to be that mean."""


@dataclass(frozen=True)
class ComparedRow:
    """One model that was measured: a variant of a run, what its stages lose as shares of the parameters, and what it costs.

    `recovery` has the names of the recoveries that gave it its weights, in order, and `formats` the number formats of prefill and
    of decode, None where that is the model's. `selected` is how many blocks of decode read only some of a prompt's K/V.
    """

    name: str
    run: str
    variant: Variant
    cells: Mapping[str, Cell]
    average: Cell | None
    prefill_removed: float | None
    decode_removed: float | None
    pruning_seconds: float | None
    decode_bytes: float | None
    kv_bytes: float | None
    recovery: tuple[str, ...] = ()
    formats: tuple[str | None, str | None] = (None, None)
    selected: int = 0


@dataclass(frozen=True)
class Comparison:
    """A table of rows by columns. `best` has for each column (and "average") the rows, by number, that are best of the pruned."""

    model: str
    columns: tuple[Column, ...]
    rows: tuple[ComparedRow, ...]
    best: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    format: int = field(default=COMPARISON_FORMAT)

    def to_data(self) -> dict[str, Any]:
        """Return the table as data that JSON knows."""
        data: dict[str, Any] = TypeAdapter(Comparison).dump_python(self, mode="json")
        return data

    def to_json(self) -> str:
        """Return the table as JSON."""
        return TypeAdapter(Comparison).dump_json(self, indent=1).decode() + "\n"


def compare(
    paths: Sequence[Path], variants: Sequence[Variant] | Mapping[Path, Sequence[Variant]] = ("staged",), tasks: Sequence[str] = ()
) -> Comparison:
    """Compare finished runs by the tasks that they were evaluated on, or else by their own objective and their fidelity.

    `variants` are the same for all runs, or given for each.

    Raises `PdtrimError` for runs of different models and for runs that have no task in common.
    """
    candidates, notes = _candidates(paths, variants if isinstance(variants, Mapping) else dict.fromkeys(paths, variants))
    known = {result.task for one in candidates for _, result in one.results}
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise PdtrimError(f"none of these rows has a result of the task '{unknown[0]}'{did_you_mean(unknown[0], known)}")
    columns: tuple[Column, ...] = ()
    cells: dict[str, dict[str, Cell]] = {one.name: {} for one in candidates}
    benchmarks = known - {TASK}
    if not tasks and not benchmarks and (not known or len({one.outcome.objective for one in candidates}) == 1):
        columns, cells = objective_cells(candidates, notes)
    if tasks or known:
        of_tasks, found = choose({one.name: one.results for one in candidates}, tasks or sorted(known), notes)
        _check_common(candidates, {name: found[name] for name in found if tasks or name in benchmarks})
        of_rows = _task_cells(candidates, of_tasks, found, notes)
        columns, cells = (*columns, *of_tasks), {name: {**cells[name], **of_rows[name]} for name in cells}
    rows = tuple(_row(one, cells[one.name], columns) for one in candidates)
    return Comparison(candidates[0].outcome.model, columns, rows, _best(rows, columns), tuple(dict.fromkeys(notes)))


def _candidates(paths: Sequence[Path], variants: Mapping[Path, Sequence[Variant]]) -> tuple[list[RowSource], list[str]]:
    """Return the rows to be, the dense model first; what there is of a run whose model was replaced is unified."""
    if not paths:
        raise PdtrimError("name the folders of the runs to compare")
    outcomes = {path: load_outcome(path) for path in paths}
    if len(outcomes) < len(paths):
        raise PdtrimError(f"{next(path for path in paths if list(paths).count(path) > 1)} is named twice")
    _check_one_model(outcomes)
    names = _short_names(list(outcomes))
    results = {path: [(path, result) for result in results_in(path)] for path in outcomes}
    notes: list[str] = []
    candidates = []
    if any("dense" in of_run for of_run in variants.values()):
        path, outcome = next(iter(outcomes.items()))
        dense = tuple(pair for of_run in results.values() for pair in of_run if pair[1].variant == "dense")
        candidates.append(RowSource("dense", path, outcome, "dense", dense))
    for path, outcome in outcomes.items():
        of_run: dict[Variant, None] = dict.fromkeys(
            "unified" if outcome.saved_plan is None else variant for variant in variants[path] if variant != "dense"
        )
        for variant, absent in [(variant, outcome.why_absent(variant)) for variant in of_run]:
            if absent:
                notes.append(f"{names[path]} {absent}")
                del of_run[variant]
        for variant in of_run:
            own = tuple(pair for pair in results[path] if pair[1].variant == variant)
            name = f"{names[path]} ({variant})" if len(of_run) > 1 or variant != "staged" else names[path]
            candidates.append(RowSource(name, path, outcome, variant, own))
            others = sorted({result.variant for _, result in results[path]} - {variant})
            if not own and any(results.values()):
                hint = f"; it has some of {', '.join(others)}" if others else ""
                notes.append(f"{names[path]} has no evaluations of the variant {variant}{hint}")
    if not candidates:
        raise PdtrimError(f"there is nothing to compare: {notes[0]}")
    return candidates, notes


def _check_one_model(outcomes: Mapping[Path, Outcome]) -> None:
    (first, of_first), *others = outcomes.items()
    for path, outcome in others:
        if outcome.environment.weights != of_first.environment.weights:
            raise PdtrimError(
                f"{first} is a run on {of_first.model} ({of_first.environment.weights[:12]}), {path} on {outcome.model} "
                f"({outcome.environment.weights[:12]}): compare runs on the same weights"
            )


def _short_names(paths: Sequence[Path]) -> dict[Path, str]:
    last = [path.resolve().name for path in paths]
    return {path: name if last.count(name) == 1 else str(path) for path, name in zip(paths, last, strict=True)}


def _check_common(candidates: Sequence[RowSource], found: Mapping[str, Mapping[str, TaskResult]]) -> None:
    with_results = [one for one in candidates if any(result.task in found for _, result in one.results)]
    if len(with_results) > 1 and not any(len(of_task) > 1 for of_task in found.values()):
        having = "; ".join(f"{one.name} has {', '.join(sorted({r.task for _, r in one.results}))}" for one in with_results)
        raise PdtrimError(f"no task was measured on two of these rows with the same settings ({having}): see pdtrim-core eval")


def _task_cells(
    candidates: Sequence[RowSource], columns: Sequence[Column], found: Mapping[str, Mapping[str, TaskResult]], notes: list[str]
) -> dict[str, dict[str, Cell]]:
    """Return the cells of each row by task."""
    cells: dict[str, dict[str, Cell]] = {one.name: {} for one in candidates}
    first = candidates[0].name
    for column in columns:
        of_task = found[column.name]
        for name, result in of_task.items():
            base = of_task.get(first) if name != first else None
            cells[name][column.name] = _cell(result, base, column, notes)
        missing = [one.name for one in candidates if one.name not in of_task and one.results]
        if missing:
            notes.append(f"{column.name} was not measured with these settings on {', '.join(missing)}")
    return cells


def _cell(result: TaskResult, base: TaskResult | None, column: Column, notes: list[str]) -> Cell:
    metric, scale = result.metrics[column.metric], column.scale
    error = None if metric.error is None else scale * metric.error
    plain = Cell(scale * metric.value, error, items=len(result.answers))
    if base is None:
        return plain
    there = base.metrics[column.metric]
    own, others = _item_values(result, column.metric), _item_values(base, column.metric)
    difference = plain.value - scale * there.value
    gap = None if own is None or others is None else _paired_error(own, others)
    if gap is not None:
        return Cell(plain.value, error, difference, scale * gap, paired=True, items=plain.items)
    reason = "the items are not the same" if own and others else "its value is no mean over items"
    notes.append(f"{column.name}: {reason}, so that errors of differences are not paired")
    known = metric.error is not None and there.error is not None
    gap_or_none = scale * math.hypot(metric.error or 0, there.error or 0) if known else None
    return Cell(plain.value, error, difference, gap_or_none, items=plain.items)


class _ItemValue(NamedTuple):
    """The value of an item, and how much of the mean over items it is: its tokens, where values are means over those."""

    value: float
    weight: float


def _paired_error(own: Mapping[str, _ItemValue], others: Mapping[str, _ItemValue]) -> float | None:
    """Return the standard error of the difference of two means over the same items; None where they are not the same."""
    if {item: one.weight for item, one in own.items()} != {item: one.weight for item, one in others.items()}:
        return None
    gaps = [own[item].value - others[item].value for item in own]
    weights = [one.weight for one in own.values()]
    if len(set(weights)) == 1:
        return standard_error(gaps)
    parts = [gap * weight for gap, weight in zip(gaps, weights, strict=True)]
    return ratio(parts, weights, higher_is_better=True).error


def _item_values(result: TaskResult, metric: str) -> dict[str, _ItemValue] | None:
    """Return a metric's values by item, where the metric is their mean; else None."""
    # The same name may come twice in a task of several parts; their order tells them apart.
    times: Counter[str] = Counter()
    values: dict[str, _ItemValue] = {}
    for answer in result.answers:
        times[answer.item] += 1
        if metric in answer.values:
            weight = answer.values.get("tokens", 1.0) if result.task == TASK else 1.0
            values[f"{answer.item} {times[answer.item]}"] = _ItemValue(answer.values[metric], weight)
    total = sum(one.weight for one in values.values())
    if not total or len(values) < len(result.answers):
        return None
    value, mean = result.metrics[metric].value, sum(one.value * one.weight for one in values.values()) / total
    return values if abs(mean - value) <= SAME * max(1.0, abs(value)) else None


def _row(one: RowSource, cells: Mapping[str, Cell], columns: Sequence[Column]) -> ComparedRow:
    prefill, decode = (one.outcome.cost(f"parameters of {stage}").saved for stage in ("prefill", "decode"))
    # The run's costs are those of the pair; a single-stage model is the same in both stages.
    removed: Mapping[Variant, tuple[float, float]] = {
        "staged": (prefill, decode),
        "unrecovered": (prefill, decode),
        "unquantized": (prefill, decode),
        "unselected": (prefill, decode),
        "unified": (decode, decode),
        "decode": (decode, decode),
        "prefill": (prefill, prefill),
        "dense": (0.0, 0.0),
    }
    traffic, kv = one.outcome.cost("decode weight traffic"), one.outcome.cost("K/V shipped to decode")
    dense = one.variant == "dense"
    formats = _formats(one)
    # Of a pair with formats only the bytes that it has with them are counted.
    unknown = one.variant == "prefill" or (one.variant in UNQUANTIZED and one.outcome.quantized)
    selected = len(one.outcome.plan.plan.selections) if one.outcome.selected and one.variant == "staged" else 0
    # Of a pair whose K/V are selected only the K/V that it ships with them are counted.
    kv_unknown = one.variant == "prefill" or (one.outcome.selected and not selected)
    recovered = one.variant not in ("unrecovered", "dense")
    left_out = (
        *NOT_PRUNING,
        *([] if recovered else [RECOVERING]),
        *([] if any(formats) else [QUANTISING]),
        *([] if selected else [SELECTING]),
    )
    seconds = sum(taken for step, taken in one.outcome.seconds.items() if step not in left_out)
    return ComparedRow(
        name=one.name,
        run=str(one.path),
        variant=one.variant,
        cells=cells,
        average=_average([cells.get(column.name) for column in columns if column.percent]),
        prefill_removed=removed[one.variant][0],
        decode_removed=removed[one.variant][1],
        pruning_seconds=None if dense else round(seconds, 1),
        decode_bytes=None if unknown else traffic.dense if dense else traffic.plan,
        kv_bytes=kv.dense if dense else None if kv_unknown else kv.plan,
        recovery=tuple(result.name for result in one.outcome.recovery if result.kept and recovered),
        formats=formats,
        selected=selected,
    )


def _formats(one: RowSource) -> tuple[str | None, str | None]:
    """Return the number formats of prefill and decode; a single-stage model has the same in both."""
    found = one.outcome.plan.formats if one.outcome.quantized else None
    if found is None or one.variant in (*UNQUANTIZED, "dense"):
        return (None, None)
    if one.variant == "staged":
        return (found.prefill, found.decode)
    own = found.prefill if one.variant == "prefill" else found.decode
    return (own, own)


def _average(cells: Sequence[Cell | None]) -> Cell | None:
    """Return the mean over tasks, with errors as of independent tasks; None where a task is missing or there is but one."""
    if len(cells) < 2 or None in cells:
        return None
    known = [cell for cell in cells if cell is not None]
    differences = [cell.difference for cell in known if cell.difference is not None]
    return Cell(
        value=sum(cell.value for cell in known) / len(known),
        error=_of_mean([cell.error for cell in known]),
        difference=sum(differences) / len(known) if len(differences) == len(known) else None,
        difference_error=_of_mean([cell.difference_error for cell in known]),
        paired=all(cell.paired for cell in known),
        items=sum(cell.items for cell in known),
    )


def _of_mean(errors: Sequence[float | None]) -> float | None:
    given = [error for error in errors if error is not None]
    return math.hypot(*given) / len(given) if len(given) == len(errors) else None


def _best(rows: Sequence[ComparedRow], columns: Sequence[Column]) -> dict[str, tuple[int, ...]]:
    """Return the best pruned rows of each column; nothing is best among fewer than two."""
    values: dict[str, dict[int, float]] = {}
    for number, row in enumerate(rows):
        if row.variant != "dense":
            for column in columns:
                if column.name in row.cells:
                    sign = 1 if column.higher_is_better else -1
                    values.setdefault(column.name, {})[number] = sign * row.cells[column.name].value
            if row.average is not None:
                values.setdefault("average", {})[number] = row.average.value
    return {
        name: tuple(number for number, value in of_rows.items() if value == max(of_rows.values()))
        for name, of_rows in values.items()
        if len(of_rows) > 1
    }
