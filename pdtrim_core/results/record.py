"""What the folder of a run has to tell, whether the run finished or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdtrim_core.data.readings import Reading
from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.paths import PathLike
from pdtrim_core.files.reading import UnreadableError, read_json, read_toml
from pdtrim_core.plan.elements import MOST_BLOCKS
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.run_folder import load_outcome, measured_in
from pdtrim_core.results.task_results import TaskResult, results_in


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder has it.

    `outcome` is None where the run has not finished; `recipe`, `scores` (the data of `scores.json`) and `environment` then
    tell what is known. `readings` are the measurements of its journal in the order in which they were made, by the part of
    the items that they were made on.
    """

    path: Path
    outcome: Outcome | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    readings: Mapping[str, Mapping[Plan, Reading]] = field(default_factory=dict)
    results: tuple[TaskResult, ...] = ()

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name


def read_record(path: PathLike, outcome: Outcome | None = None) -> RunRecord:
    """Return what a run folder has; `outcome` is given by a run whose file of it is not written yet.

    Raises `PdtrimError` for a folder that is none of a run, is of another version, or holds a file that cannot be read.
    """
    path = Path(path)
    journal = (path / "journal.jsonl").is_file()
    if outcome is None and ((path / "outcome.json").exists() or not journal):
        outcome = load_outcome(path)
    return RunRecord(
        path,
        outcome,
        recipe=outcome.recipe if outcome else _recipe_in(path / "recipe.toml"),
        scores=_scores_in(path / "scores.json"),
        environment=_data_in(path / "environment.json"),
        readings=measured_in(path) if journal else {},
        results=tuple(results_in(path)),
    )


def _recipe_in(file: Path) -> dict[str, Any]:
    try:
        return read_toml(file)
    except FileNotFoundError:
        return {}
    except UnreadableError as error:
        raise PdtrimError(f"{error}: run its recipe again with --fresh") from None


def _scores_in(file: Path) -> dict[str, Any]:
    """Return what the scorer said; nothing where it has not come to it."""
    data = _data_in(file)
    for key in ("block", "pair", "norms"):
        numbers = data.get(key, [])
        if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
            raise PdtrimError(f"{file} cannot be read ({key} is no list of numbers): run its recipe again with --fresh")
        if len(numbers) > MOST_BLOCKS + 1:
            raise PdtrimError(f"{file} cannot be read (it has {len(numbers)} scores): run its recipe again with --fresh")
    return data


def _data_in(file: Path) -> dict[str, Any]:
    """Return the data of a JSON file that a run writes; nothing where it has not got so far."""
    try:
        data = read_json(file)
    except FileNotFoundError:
        return {}
    except UnreadableError as error:
        raise PdtrimError(f"{error}: run its recipe again with --fresh") from None
    return data if isinstance(data, dict) else {}
