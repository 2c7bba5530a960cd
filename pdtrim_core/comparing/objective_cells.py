"""Cells of a comparison, and those of runs that were never evaluated: their own objective, paired by their journals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdtrim_core.comparing.groups import Column
from pdtrim_core.data.readings import Reading, standard_error
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import Outcome, Value
from pdtrim_core.results.run_folder import measured_in
from pdtrim_core.results.task_results import TaskResult, Variant

ROWS: Mapping[Variant, str] = {"dense": "dense", "unified": "unified", "decode": "unified", "staged": "staged"}
"""The rows of an outcome that have the variants' scores; the others are not measured by a run."""


@dataclass(frozen=True)
class Cell:
    """A number with its standard error, and its difference to the first row with the error of that, in the column's unit."""

    value: float
    error: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    paired: bool = False
    items: int = 0


@dataclass(frozen=True)
class RowSource:
    """What a row is made from: its name, its run, its variant, and all that was measured of it."""

    name: str
    path: Path
    outcome: Outcome
    variant: Variant
    results: tuple[tuple[Path, TaskResult], ...]


def objective_cells(candidates: Sequence[RowSource], notes: list[str]) -> tuple[tuple[Column, ...], dict[str, dict[str, Cell]]]:
    """Return the one column that runs have by themselves: their objective, on the held-out items where there are some."""
    objectives = {one.outcome.objective for one in candidates}
    if len(objectives) > 1:
        raise PdtrimError(
            f"these runs have no evaluations, and their objectives differ ({', '.join(sorted(objectives))}): evaluate them with "
            "pdtrim-core eval"
        )
    held_out = all(row.held_out is not None for one in candidates for row in one.outcome.rows)
    what = "held out" if held_out else "calibration"
    if len({one.outcome.environment.data for one in candidates}) > 1:
        notes.append("the runs measured on different items")
    notes.append(f"no evaluations of these rows: the table shows the runs' own score ({what}); see pdtrim-core eval")
    column = Column(f"{objectives.pop()} ({what})", "score", percent=False)
    cells: dict[str, dict[str, Cell]] = {}
    for one in candidates:
        cell = _objective_cell(one, candidates[0], notes, held_out=held_out)
        cells[one.name] = {} if cell is None else {column.name: cell}
    unknown = sorted({one.variant for one in candidates if one.variant not in ROWS})
    if unknown:
        notes.append(f"runs do not measure their own score of the variant {' and '.join(unknown)}: see pdtrim-core eval")
    return (column,), cells


def _objective_cell(one: RowSource, first: RowSource, notes: list[str], *, held_out: bool) -> Cell | None:
    """Return the score of a row, with its difference to that of the first; None where the run did not measure it."""
    if one.variant not in ROWS:
        return None
    value = _value(one, held_out=held_out)
    if one is first or first.variant not in ROWS:
        return Cell(value.score, value.error, items=value.items)
    there = _value(first, held_out=held_out)
    difference = value.score - there.score
    gaps = _objective_gaps(one, first, held_out=held_out)
    if gaps is None or value.mean == there.mean:
        if gaps is None:
            notes.append("errors of differences are not paired: the runs' journals do not have the same items")
        return Cell(value.score, value.error, difference, math.hypot(value.error, there.error), items=value.items)
    # The score is not linear in the mean for every objective; this is its slope between the two means.
    slope = abs(difference / (value.mean - there.mean))
    return Cell(value.score, value.error, difference, slope * standard_error(gaps), paired=True, items=value.items)


def _value(one: RowSource, *, held_out: bool) -> Value:
    row = one.outcome.row(ROWS[one.variant])
    return row.held_out if held_out and row.held_out else row.calibration


def _is_of(one: RowSource, reading: Reading, *, held_out: bool) -> bool:
    """Tell whether a reading is that of a row: two rows of a run with formats may have one plan, which the journal has once."""
    mean = _value(one, held_out=held_out).mean
    return not one.outcome.quantized or (reading.mean is not None and math.isclose(reading.mean, mean))


def _objective_gaps(one: RowSource, first: RowSource, *, held_out: bool) -> list[float] | None:
    """Return differences item by item, from the journals of two runs on the same items."""
    if one.outcome.environment.data != first.outcome.environment.data or None in (
        one.outcome.saved_plan,
        first.outcome.saved_plan,
    ):
        return None
    if not all((each.path / "journal.jsonl").is_file() for each in (one, first)):
        return None
    readings = []
    for each in (one, first):
        plan = each.outcome.plan.plan
        wanted = {"staged": plan, "unified": Plan.unified(plan.decode), "dense": Plan()}[ROWS[each.variant]]
        known: Mapping[Plan, Reading] = measured_in(each.path).get("held-out" if held_out else "calibration", {})
        readings.append(known[wanted].items if wanted in known and _is_of(each, known[wanted], held_out=held_out) else ())
    own, others = readings
    if not own or len(own) != len(others):
        return None
    gaps = [mine - its for mine, its in zip(own, others, strict=True) if mine is not None and its is not None]
    # A reading that was cut short has no value for some items.
    return gaps if len(gaps) == len(own) else None
