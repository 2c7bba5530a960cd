"""Sweeps: a table of settings on top of one recipe, read from TOML and checked whole, with the problems of all runs at once."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pdtrim_core.checking import checked
from pdtrim_core.errors import RecipeError, did_you_mean
from pdtrim_core.evaluations import Side
from pdtrim_core.plugins import PluginHost
from pdtrim_core.recipe import Recipe, resolve
from pdtrim_core.recipe_data import load, parse_setting, plugin_files, put
from pdtrim_core.sweeping.evaluate_table import Evaluate
from pdtrim_core.sweeping.table import COLUMNS, DEFAULT_COLUMNS, short_keys

MOST_RUNS = 1000
LONGEST_NAME = 200
DATA = "${data}"
"""Stands in a sweep, and in its recipe, for the folder that `--data` names."""
OWN_KEYS = ("out", "plugins")
"""Keys of a recipe that no run of a sweep may set: each has its own folder, and one set of plugins is loaded."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")

Settings = dict[str, Any]
"""Values by dotted key, such as {"searcher.t0": 5}."""


class Entry(BaseModel):
    """One line of a sweep's table: settings, and a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", description="name of the run and of its folder (default: made from the settings)")
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe, as in [grid] but with one value each")
    sides: tuple[Side, ...] = Field((), description="what answers of this run, instead of the sides of [evaluate]")


class SweepFile(BaseModel):
    """What a sweep file may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sweep: int = Field(ge=1, le=1, description="format of the file")
    about: str = Field("", description="what the sweep is for, in a line; it stands above its table")
    out: str = Field("", description="folder of the sweep, with a folder a run (default: runs/ and the file's name)")
    recipe: Any = Field(description="recipe that every run starts from: a file, relative to this one, or a table")
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe that are other ones in all runs")
    grid: dict[str, Any] = Field(
        default_factory=dict, description="keys of the recipe with lists of values; all combinations run"
    )
    runs: tuple[Entry, ...] = Field((), description="single runs; with a grid, each of them in all its combinations")
    columns: tuple[str, ...] = Field(DEFAULT_COLUMNS, description="columns of the table, behind the settings")
    evaluate: Evaluate | None = Field(None, description="benchmarks for every run, which then make the table")


@dataclass(frozen=True)
class Point:
    """One line of the table: the name of its run, the name that the file gave it, the values that vary, what is evaluated."""

    name: str
    given_name: str
    settings: Settings
    sides: tuple[Side, ...] = ()


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep, checked."""

    point: Point
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """A sweep whose every run is checked. `keys` are the settings that tell apart runs of the same given name."""

    name: str
    about: str
    out: Path
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    evaluate: Evaluate | None = None
    runs_code: bool = False


@dataclass(frozen=True)
class Changes:
    """What the command line says about a sweep.

    `--set`, `--out`, the folder that `${data}` stands for, and whether benchmarks may run programs that a model wrote.
    """

    settings: Sequence[str] = ()
    out: Path | None = None
    data: Path | None = None
    runs_code: bool = False


NO_CHANGES = Changes()


def is_sweep(data: Mapping[str, Any]) -> bool:
    """Tell whether the data of a TOML file are a sweep's, not a recipe's."""
    return "sweep" in data


def base_recipe(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the data of the recipe that a sweep starts from, with plugins by their whole path.

    Raises `RecipeError` where the sweep names none that can be read.
    """
    given = data.get("recipe")
    where = path
    if isinstance(given, str) and given:
        where = path.parent / given
        given = load(where)
        if is_sweep(given):
            raise RecipeError(str(path), [f"recipe: {where} is a sweep itself: name a recipe"])
    if not isinstance(given, dict):
        raise RecipeError(str(path), [f"recipe: must be the path of a recipe, or a table (got {given!r})"])
    if not isinstance(given.get("plugins", []), list):
        return given
    return {**given, "plugins": [str(file.resolve()) for file in plugin_files(given, where)]} if "plugins" in given else given


def read_sweep(path: Path, host: PluginHost, changes: Changes = NO_CHANGES, *, need_data: bool = False) -> Sweep:
    """Return the sweep in a file. Raises `RecipeError` with all problems of all runs at once.

    With `need_data`, a `${data}` that no folder was given for is a problem.
    """
    given = load(path)
    problems: list[str] = []
    file = checked(SweepFile, given, "", problems)
    if file is None:
        raise RecipeError(str(path), problems)
    base = base_recipe(given, path)
    points = _points(file, problems)
    forced = [(".".join(keys), value) for keys, value in map(parse_setting, changes.settings)]
    common = _with(base, [*_flat(file.set, "set", problems), *forced])
    problems += [*_wrong_columns(file), *_wrong_changes(changes, forced, points)]
    evaluate = file.evaluate
    if evaluate is not None and changes.data is not None:
        evaluate = evaluate.model_copy(update={"data": evaluate.data.replace(DATA, str(changes.data))})
    if evaluate is not None:
        problems += evaluate.problems + (_uses_data({"evaluate.data": evaluate.data}) if need_data else [])
    if problems:
        raise RecipeError(str(path), problems)
    out = changes.out or Path(file.out or f"runs/{path.stem}")
    wanted = {}
    for point in points:
        data = _with(common, list(point.settings.items()))
        wanted[point.name] = _replaced(data, DATA, str(changes.data)) if changes.data else data
    recipes = _resolve_all(wanted, host, path, out, need_data=need_data)
    keys = dict.fromkeys(key for point in points for key in point.settings if not _said_by_name(key, file))
    runs = tuple(PlannedRun(point, recipes[point.name]) for point in points)
    return Sweep(path.stem, file.about, out, file.columns, tuple(keys), runs, evaluate, changes.runs_code)


def _resolve_all(
    wanted: Mapping[str, dict[str, Any]], host: PluginHost, path: Path, out: Path, *, need_data: bool
) -> dict[str, Recipe]:
    """Return the recipe of each run; a problem that many runs have is told once."""
    recipes: dict[str, Recipe] = {}
    found: dict[str, list[str]] = {}
    for name, data in wanted.items():
        problems = _uses_data(data) if need_data else []
        try:
            recipes[name] = resolve(data, host, where=str(path), out=out / name)
        except RecipeError as error:
            problems += error.problems
        for problem in problems:
            found.setdefault(problem, []).append(name)
    if found:
        raise RecipeError(str(path), [_in_runs(problem, names, len(wanted)) for problem, names in found.items()])
    return recipes


def _said_by_name(key: str, file: SweepFile) -> bool:
    """Tell whether a key varies only among runs that have names: then the name stands for it in the table."""
    return key not in dict(_leaves(file.grid)) and all(entry.name for entry in file.runs if key in dict(_leaves(entry.set)))


def _points(file: SweepFile, problems: list[str]) -> list[Point]:
    """Return the lines of the table; none where the file does not say them well."""
    grid = dict(_flat(file.grid, "grid", problems))
    for key, values in grid.items():
        if not isinstance(values, list):
            problems.append(f"grid.{key}: must be a list of values (got {values!r})")
        elif not values:
            problems.append(f"grid.{key}: an empty list gives no runs")
    if not grid and not file.runs:
        problems.append("nothing varies: give [grid], [[runs]] or both")
    own = [(entry, dict(_flat(entry.set, f"runs.{number}.set", problems))) for number, entry in enumerate(file.runs)]
    for number, (entry, settings) in enumerate(own):
        # A grid may vary an option of what a run names anew; it comes after it.
        problems += [f"runs.{number}.set.{key}: is in [grid] too" for key in settings if _within(key, grid)]
        if entry.sides and file.evaluate is None:
            problems.append(f"runs.{number}.sides: there is no table [evaluate] that says what they are evaluated on")
    count = math.prod(len(values) for values in grid.values() if isinstance(values, list)) * max(1, len(own))
    if count > MOST_RUNS:
        problems.append(f"grid: these are {count} runs, more than {MOST_RUNS}")
    return [] if problems else _named(own or [(Entry(), {})], file, grid, problems)


def _named(
    own: Sequence[tuple[Entry, Settings]], file: SweepFile, grid: Mapping[str, Sequence[Any]], problems: list[str]
) -> list[Point]:
    """Return each run in each combination of the grid; a name is made from what it leaves open."""
    labels = short_keys([*grid, *dict.fromkeys(key for _, settings in own for key in settings)])
    points: dict[str, Point] = {}
    for entry, settings in own:
        given_name, sides = entry.name, entry.sides or (file.evaluate.sides if file.evaluate else ())
        for values in itertools.product(*grid.values()):
            combination = dict(zip(grid, values, strict=True))
            open_keys = combination if given_name else {**settings, **combination}
            parts = [f"{labels[key]}={_shown(value)}" for key, value in open_keys.items()]
            name = ",".join([given_name, *parts] if given_name else parts)
            if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
                problems.append(f"runs: '{name}' is no name for a folder: give a name of letters, digits and . _ = , + -")
            elif name in points:
                problems.append(f"runs: two runs are called '{name}': give each a name of its own")
            points[name] = Point(name, given_name, {**settings, **combination}, sides)
    return list(points.values())


def _flat(table: Mapping[str, Any], place: str, problems: list[str]) -> list[tuple[str, Any]]:
    """Return the values of a table by dotted key, whether it was written nested, with dotted keys, or quoted.

    A table with the key `use` is a value: it names a component anew. Any other table changes the keys that it has.
    """
    found: dict[str, Any] = {}
    for key, value in _leaves(table):
        if not all(key.split(".")):
            problems.append(f"{place}.{key}: is no key of a recipe")
        elif key.split(".")[0] in OWN_KEYS:
            problems.append(f"{place}.{key}: a run of a sweep cannot set this; the sweep or its recipe can")
        elif _overlaps(key, found):
            problems.append(f"{place}.{key}: is given twice")
        found[key] = value
    return list(found.items())


def _leaves(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value and not isinstance(value.get("use"), str):
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in _leaves(value))
        else:
            yield key, value


def _overlaps(key: str, others: Mapping[str, Any]) -> bool:
    return _within(key, others) or any(f"{other}.".startswith(f"{key}.") for other in others)


def _within(key: str, others: Mapping[str, Any]) -> bool:
    return any(f"{key}.".startswith(f"{other}.") for other in others)


def _wrong_changes(changes: Changes, forced: Sequence[tuple[str, Any]], points: Sequence[Point]) -> list[str]:
    varied = {key: None for point in points for key in point.settings}
    problems = [f"--set {key}: the runs of this sweep differ in it" for key, _ in forced if _overlaps(key, varied)]
    problems += [f"--set {key}: a run of a sweep cannot set this" for key, _ in forced if key in OWN_KEYS]
    if changes.data is not None and not changes.data.is_dir():
        problems.append(f"--data: there is no folder {changes.data}")
    return problems


def _with(data: Mapping[str, Any], settings: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    changed = dict(data)
    for key, value in settings:
        changed = put(changed, key.split("."), value)
    return changed


def _replaced(value: Any, old: str, new: str) -> Any:
    """Return data with a text in it replaced wherever it stands."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    return value


def _uses_data(data: Mapping[str, Any]) -> list[str]:
    places = sorted(key for key, value in data.items() if DATA in json.dumps(value, default=str))
    return [f"{key}: {DATA} stands for a folder with data: name it with --data DIR" for key in places]


def _in_runs(problem: str, names: Sequence[str], count: int) -> str:
    if len(names) == count:
        return problem
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{problem} (in {'; '.join(names[:3])}{more})"


def _wrong_columns(file: SweepFile) -> list[str]:
    return [f"columns: there is no column '{name}'{did_you_mean(name, COLUMNS)}" for name in file.columns if name not in COLUMNS]


def _shown(value: Any) -> str:
    """Return a value as a part of a folder's name."""
    if isinstance(value, dict):
        return str(value["use"]) if "use" in value else ",".join(f"{key}-{_shown(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "+".join(_shown(item) for item in value) or "none"
    if isinstance(value, str):
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", value).strip("-") or "none"
    return str(value).lower()
