"""What a run did, as data: the plan, the scores, the readings, the costs, and everything needed to repeat it."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pdtrim_core.errors import PdtrimError, PlanError
from pdtrim_core.files.reading import UnreadableError, parse_json
from pdtrim_core.plan.elements import MOST_BLOCKS
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.results.fidelity import Fidelity
from pdtrim_core.results.notebook import outcome_html
from pdtrim_core.results.old_formats import outcome_of_1
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.task_results import Variant
from pdtrim_core.wording import LONGEST_LINE, shortened, shown

OUTCOME_FORMAT = 2
LARGEST = 1e30
"""The largest number of an outcome: a model of 1e15 weights would compute less for a long prompt."""
MOST_NOTES = 1000
MOST_ROWS = 100
"""Rows of one table of an outcome at most; a run writes five."""
MOST_POINTS = 20_000
"""Points of one curve of an outcome at most; a text has one for each token of its answer."""
CANDIDATES = ("measured", "cut_short", "remembered")
PACKAGES = ("pdtrim-core", "torch", "transformers", "safetensors", "pluggy", "pydantic")


@dataclass(frozen=True)
class Environment:
    """Where a run ran: packages, machine, threads, and hashes of what went in.

    `sources` has the code that its numbers come from: where it is from and a hash of it, by what it is.
    """

    versions: dict[str, str]
    machine: str
    threads: int
    device: str
    weights: str
    data: str
    recipe: str
    training: str = ""
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """The objective of a plan on one set of items: its mean in its own unit, the score, and the standard error of the score."""

    mean: float
    score: float
    error: float
    items: int


@dataclass(frozen=True)
class Row:
    """One line of the result table: a plan by name, on the items that measured and on held-out ones."""

    name: str
    calibration: Value
    held_out: Value | None


@dataclass(frozen=True)
class Gain:
    """The gain in score, in points, of keeping one element in prefill; `error` is its paired standard error.

    `kept_in_prefill` tells that prefill keeps what decode loses.
    """

    element: str
    gain: float
    error: float
    kept_in_prefill: bool


@dataclass(frozen=True)
class Cost:
    """One cost, of the dense model and of the plan."""

    name: str
    unit: str
    dense: float
    plan: float

    @property
    def saved(self) -> float:
        """The share that went away, as a fraction of 1."""
        return 1 - self.plan / self.dense


N = TypeVar("N", Row, Cost)


@dataclass(frozen=True)
class Sets:
    """The two sets of the method, by blocks: P_initial, the pairs of D, and P_final; `threshold` is d_T, None without pairs."""

    initial: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    drops: tuple[int, ...]
    threshold: float | None


@dataclass(frozen=True)
class MergeResult:
    """How the merge of a pair came out: its pair score d, errors of the hidden states behind it, and whether it could be chosen.

    Errors are mean squared differences from the dense model: of the block that training started from, of the trained one,
    and of dropping the better one of the two blocks instead. Of a pruner's longer run, `pair` has all blocks, the drop is of
    all but the first or the last of them, and there is no score.
    """

    pair: tuple[int, ...]
    score: float | None
    untrained: float
    trained: float
    drop: float
    kept: bool
    chosen: bool


@dataclass(frozen=True)
class SearchStep:
    """A plan that the searcher requested, its elements in words: its score, or the highest it could reach if it was cut short.

    `floor` is the score from which the search accepted it, None where it set none; `temperature` (points of the score) is that
    of annealing. A plan that may not win is only a step on the way to a result.
    """

    prefill: str
    decode: str
    score: float | None
    ceiling: float
    floor: float | None = None
    temperature: float | None = None
    may_win: bool = True

    @property
    def taken(self) -> bool:
        """Whether the search went on from here: the floor was reached, or there was none."""
        return self.score is not None and (self.floor is None or self.score >= self.floor)


@dataclass(frozen=True)
class Outcome:
    """What a run did. `outcome.json` holds it, and every report is made from it.

    `saved_plan` is None where a pruner replaced the whole model: then no plan of the dense model says what is run, and the
    row `unified` and the costs are those of the replaced model.

    `norms` are the mean lengths of the hidden states in front of each block, and behind the last one, over the calibration
    tokens; empty where no scorer looked at them. `search` has every plan that the searcher requested, in order. `fidelity` is how
    near the variants are to the dense model on held-out items, None where the run did not compare them; `recovery` is how each
    recovery came out, in order.
    """

    model: str
    license: str
    block_count: int
    objective: str
    saved_plan: dict[str, Any] | None
    block_scores: tuple[float, ...]
    pair_scores: tuple[float, ...]
    sets: Sets
    rows: tuple[Row, ...]
    gains: tuple[Gain, ...]
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    peak_memory: int
    candidates: dict[str, int]
    environment: Environment
    recipe: dict[str, Any]
    merges: tuple[MergeResult, ...] = ()
    norms: tuple[float, ...] = ()
    search: tuple[SearchStep, ...] = ()
    fidelity: Fidelity | None = None
    recovery: tuple[RecoveryResult, ...] = ()
    format: int = field(default=OUTCOME_FORMAT)

    @cached_property
    def plan(self) -> SavedPlan:
        """The plan, with the model it was made for. Raises `PlanError` for a run that has none (`saved_plan` is None)."""
        if self.saved_plan is None:
            raise PlanError(f"this run has no plan: its pruner replaced the whole of {self.model}, and removed no blocks from it")
        return SavedPlan.from_data(self.saved_plan, "outcome.json")

    @property
    def quantized(self) -> bool:
        """Whether a stage has a number format of its own."""
        return self.saved_plan is not None and self.plan.formats is not None

    @property
    def selected(self) -> bool:
        """Whether blocks of decode read only some of a prompt's K/V."""
        return self.saved_plan is not None and bool(self.plan.plan.selections)

    def why_absent(self, variant: Variant) -> str:
        """Return why this run has no pair before one of its steps, in words that follow its name; empty if it has."""
        if variant == "unrecovered" and not any(result.kept for result in self.recovery):
            why = "each of its recoveries was left out" if self.recovery else "its recipe names no recovery"
        elif variant == "unquantized" and not self.quantized:
            why = "its recipe names no formats"
        elif variant == "unselected" and not self.selected:
            why = "its decode reads all of every prompt"
        else:
            return ""
        return f"has no variant '{variant}': {why}, so that 'staged' is the same"

    def row(self, name: str) -> Row:
        """Return a row of the result table. Raises `PdtrimError` where there is none of that name."""
        return self._named("row", name, self.rows)

    def cost(self, name: str) -> Cost:
        """Return a cost by its name. Raises `PdtrimError` where there is none of that name."""
        return self._named("cost", name, self.costs)

    def _named(self, what: str, name: str, among: tuple[N, ...]) -> N:
        for one in among:
            if one.name == name:
                return one
        raise PdtrimError(f"the outcome of a run on {shortened(self.model)} has no {what} '{name}': run its recipe again")

    def to_json(self) -> str:
        """Return the text of `outcome.json`."""
        return TypeAdapter(Outcome).dump_json(self, indent=1).decode() + "\n"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return outcome_html(self)

    @classmethod
    def from_json(cls, text: str, where: str = "outcome.json") -> Outcome:
        """Read what `to_json` wrote. Raises `PdtrimError` naming `where` when it is something else."""
        try:
            data = parse_json(text)
            data = outcome_of_1(data) if data["format"] == 1 else data
            found = data["format"]
        except UnreadableError as error:
            reason = "" if error.syntax else f": {error.reason}"
            raise PdtrimError(f"{where} is not the outcome of a run{reason}") from None
        except (KeyError, TypeError):
            raise PdtrimError(f"{where} is not the outcome of a run") from None
        if found != OUTCOME_FORMAT:
            raise PdtrimError(
                f"{where} has outcome format {shown(found)}, this version reads {OUTCOME_FORMAT}: run its recipe again"
            )
        try:
            outcome = TypeAdapter(Outcome).validate_python(data)
            problem = _beyond(data) or next(_contradictions(outcome), None)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            problem = f"{shortened(place)}: {first['msg']}"
        except PlanError as error:
            problem = f"saved_plan: {str(error).removeprefix('outcome.json').lstrip(': ')}"
        if problem:
            raise PdtrimError(f"{where} is not the outcome of a run: {problem}") from None
        return outcome


def _beyond(data: Any) -> str | None:
    """Return what is larger in the data of an outcome than any run writes: readers draw and print it."""
    level: list[Any] = [data]
    while level:
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, float | int) and abs(value) > LARGEST:
                return f"a number of {value:.3g}"
        level = inner
    notes = data.get("notes") if isinstance(data, dict) else None
    if isinstance(notes, list) and (len(notes) > MOST_NOTES or any(len(str(note)) > LONGEST_LINE for note in notes)):
        return f"more than {MOST_NOTES} notes, or one of more than {LONGEST_LINE} characters"
    return None


def _contradictions(outcome: Outcome) -> Iterator[str]:
    """Yield what no run could have said, and readers count on: tables without their rows, blocks that the model does not have."""
    count = outcome.block_count
    if not 0 < count <= MOST_BLOCKS:
        yield f"block_count: no model has {shown(count)} blocks"
    if outcome.saved_plan is not None and outcome.plan.block_count != count:
        yield f"saved_plan: it is a plan for {outcome.plan.block_count} blocks, and the model has {count}"
    yield from _wrong_tables(outcome)
    yield from _wrong_recoveries(outcome)
    sets, merged = outcome.sets, (merge.pair for merge in outcome.merges)
    named = (*sets.initial, *sets.drops, *itertools.chain(*sets.pairs, *merged))
    strange = [block for block in named if not 0 <= block < count]
    if strange:
        yield f"it names block {shown(strange[0])} of a model with blocks 0 to {count - 1}"


def _wrong_tables(outcome: Outcome) -> Iterator[str]:
    """Yield what is missing or twice in the tables, or has another length than the model has blocks."""
    count = outcome.block_count
    fidelity = outcome.fidelity
    for key, names in (
        ("rows", [row.name for row in outcome.rows]),
        ("costs", [cost.name for cost in outcome.costs]),
        ("fidelity.variants", [] if fidelity is None else list(fidelity.variants)),
        ("fidelity.samples", [] if fidelity is None else [sample.item for sample in fidelity.samples]),
    ):
        if len(set(names)) < len(names):
            yield f"{key}: one is there twice"
        if len(names) > MOST_ROWS:
            yield f"{key}: {len(names)} are more than {MOST_ROWS}"
    if not outcome.rows:
        yield "rows: there are none"
    missing = [name for name in CANDIDATES if name not in outcome.candidates]
    if missing:
        yield f"candidates: there is no '{missing[0]}'"
    free = [cost.name for cost in outcome.costs if cost.dense == 0]
    if free:
        yield f"costs: '{shortened(free[0])}' of the dense model is nothing"
    for key, numbers, length in (
        ("block_scores", outcome.block_scores, count),
        ("pair_scores", outcome.pair_scores, count - 1),
        ("norms", outcome.norms, count + 1),
    ):
        if len(numbers) not in (0, length):
            yield f"{key}: {len(numbers)} numbers for {count} blocks"


def _wrong_recoveries(outcome: Outcome) -> Iterator[str]:
    """Yield what no recovery could have come to, and whose pictures would be too large to draw."""
    if len(outcome.recovery) > MOST_ROWS:
        yield f"recovery: {len(outcome.recovery)} are more than {MOST_ROWS}"
    for number, one in enumerate(outcome.recovery):
        curves = (one.losses, one.by_position_before, one.by_position_after)
        longest = max(map(len, curves))
        if longest > MOST_POINTS:
            yield f"recovery.{number}: a curve of {longest} points, more than {MOST_POINTS}"
        if len(one.by_position_before) != len(one.by_position_after):
            yield f"recovery.{number}: other positions before it than after it"
        if not one.changed.keys() <= {"prefill", "decode"}:
            yield f"recovery.{number}.changed: {shown(next(iter(one.changed.keys() - {'prefill', 'decode'})))} is no stage"
        if min(one.before.value, one.after.value, *one.by_position_before, *one.by_position_after) < 0:
            yield f"recovery.{number}: a KL divergence below zero"
        if one.kept and not one.after.value < one.before.value:
            yield f"recovery.{number}: it was kept, and the pair came no nearer to the dense model"
        if min(one.texts, one.tokens, one.seconds, *one.changed.values()) < 0:
            yield f"recovery.{number}: less than nothing was counted"
    if outcome.saved_plan is not None and outcome.plan.recovered and not any(one.kept for one in outcome.recovery):
        yield "saved_plan: it has recovered weights, and there is no recovery that was kept"


def versions(extra: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *extra):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Return the machine in words: system, processor architecture, cores."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def peak_memory() -> int:
    """Return the most bytes of main memory that this process has used at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
