"""Results on benchmarks: what was measured of a run, on which variant of it, with which settings; files in the run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.atomic_files import write_whole, writing
from pdtrim_core.files.paths import PathLike
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.results.old_formats import task_result_of_1
from pdtrim_core.wording import shown

EVALUATION_FORMAT = 2
FOLDER = "evaluations"
CODE = "code"
"""The setting that says what code measured."""
Variant = Literal["staged", "unified", "prefill", "decode", "unrecovered", "unquantized", "unselected", "dense"]
"""Which model of a run is evaluated: the pair; decode's removal in both stages; prefill or decode as a single-stage model; the
pair before its recovery, before it got number formats, and before K/V were selected, each without what came later; the dense
model."""
PAIRS: tuple[Variant, ...] = ("staged", "unrecovered", "unquantized", "unselected")
"""The variants whose stages lose each its own, so that it matters which of them makes the first token."""


@dataclass(frozen=True)
class Metric:
    """One number of a task: its value and standard error in the task's own unit; `error` is None where it has none."""

    value: float
    error: float | None = None
    higher_is_better: bool = True


@dataclass(frozen=True)
class ItemAnswer:
    """What came out for one item: its values by metric, and what was answered (a choice's number, or the generated text).

    Of an item with choices, `logprobs` are their summed log-probabilities in nats, and `target` is the number of the right one:
    margins and divergences over choices can be computed from results that are there.
    """

    item: str
    values: Mapping[str, float]
    answer: Any = None
    logprobs: tuple[float, ...] = ()
    target: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.answer, str):
            # A model may generate what no file that we read holds.
            object.__setattr__(self, "answer", self.answer.replace("\0", "\ufffd"))


@dataclass(frozen=True)
class TaskResult:
    """One task on one variant of a run.

    `main` is the metric that tables show. `settings` decide what the numbers are (plan, weights, data, shots, limit, and so on):
    two results with the same task and settings are the same result. Among them `code` has what measured it, by what it is: a
    result of other code has the same place, and is measured again.
    """

    task: str
    variant: Variant
    metrics: Mapping[str, Metric]
    main: str
    answers: tuple[ItemAnswer, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float
    notes: tuple[str, ...] = ()
    format: int = field(default=EVALUATION_FORMAT)

    @property
    def key(self) -> str:
        """What distinguishes this result from others of the same task and variant."""
        return key_of(self.settings)


def key_of(settings: Mapping[str, Any]) -> str:
    """Return a short hash of settings, but for the code that measured."""
    asked = {name: value for name, value in settings.items() if name != CODE}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def path_of(run: Path, task: str, variant: Variant, settings: Mapping[str, Any]) -> Path:
    """Return the file of a result."""
    # Not every file system takes a colon, which the names of some tasks have.
    return run / FOLDER / variant / f"{task.replace(':', '-')}-{key_of(settings)}.json"


def write_result(run: Path, result: TaskResult) -> Path:
    """Write a result into the folder of a run, whole or not at all."""
    path = path_of(run, result.task, result.variant, result.settings)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, TypeAdapter(TaskResult).dump_json(result, indent=1).decode() + "\n")


def find_result(run: Path, task: str, variant: Variant, settings: Mapping[str, Any]) -> TaskResult | None:
    """Return the result that was measured before with the same settings, if there is one; other code may have measured it."""
    path = path_of(run, task, variant, settings)
    return read_result(path) if path.is_file() else None


def results_in(run: PathLike) -> list[TaskResult]:
    """Return all results in the folder of a run, by variant and task."""
    return [read_result(path) for path in sorted((Path(run) / FOLDER).glob("*/*.json"))]


def read_result(path: Path) -> TaskResult:
    """Read what `write_result` wrote. Raises `PdtrimError` naming the file when it is something else."""
    try:
        data = read_json(path)
        data = task_result_of_1(data) if data["format"] == 1 else data
        found = data["format"]
        if found != EVALUATION_FORMAT:
            raise PdtrimError(
                f"{path} has evaluation format {shown(found)}, this version reads {EVALUATION_FORMAT}: delete it and evaluate "
                "again"
            )
        return TypeAdapter(TaskResult).validate_python(data)
    except FileNotFoundError:
        raise PdtrimError(f"{path} does not exist: delete it, if it is a link, and evaluate again") from None
    except UnreadableError as error:
        reason = "" if error.syntax else f" ({error.reason})"
        raise PdtrimError(f"{path} is no result of an evaluation{reason}: delete it and evaluate again") from error
    except (KeyError, TypeError, ValidationError) as error:
        raise PdtrimError(f"{path} is no result of an evaluation: delete it and evaluate again") from error
