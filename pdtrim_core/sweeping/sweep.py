"""Sweeps: a table of settings on top of one recipe, read from TOML and checked whole, with the problems of all runs at once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdtrim_core.errors import RecipeError, did_you_mean
from pdtrim_core.host.host import PluginHost, load_plugins
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import change, load, plugin_files, without
from pdtrim_core.recipe.validation import checked
from pdtrim_core.results.old_formats import sweep_of_1
from pdtrim_core.sweeping.evaluate_table import Evaluate
from pdtrim_core.sweeping.points import OWN_KEYS, Point, flat, leaves, overlaps, points_of
from pdtrim_core.sweeping.sweep_file import SweepFile
from pdtrim_core.sweeping.table import COLUMNS

DATA = "${data}"
PLUGINS = "plugins"
"""In a sweep, and in its recipe, replaced by the folder that `--data` names."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep, checked."""

    point: Point
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """A sweep whose every run is checked. `keys` are the settings that distinguish runs of the same given name."""

    name: str
    about: str
    out: Path
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    host: PluginHost = field(repr=False, compare=False)
    """The plugins that the parts of all runs came from."""
    evaluate: Evaluate | None = None
    runs_code: bool = False


@dataclass(frozen=True)
class Changes:
    """What the command line says about a sweep.

    `--set` by dotted key, `--out`, the folder that `${data}` stands for, and whether benchmarks may run programs that a model
    wrote.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    data: Path | None = None
    runs_code: bool = False


NO_CHANGES = Changes()


def is_sweep(data: Mapping[str, Any]) -> bool:
    """Tell whether the data of a TOML file are a sweep's, not a recipe's."""
    return "sweep" in data


def base_recipe(data: Mapping[str, Any], path: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the data of the recipe that a sweep starts from, with plugins by their whole path; those of the changes, if any.

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
    given = change(given, {key: value for key, value in (changes or {}).items() if key.split(".")[0] == PLUGINS})
    if not isinstance(given.get(PLUGINS, []), list):
        return given
    return {**given, PLUGINS: [str(file.resolve()) for file in plugin_files(given, where)]} if PLUGINS in given else given


def read_sweep(
    path: Path, host: PluginHost | None = None, changes: Changes = NO_CHANGES, *, need_data: bool = False, trust: bool = True
) -> Sweep:
    """Return the sweep in a file. Raises `RecipeError` with all problems of all runs at once.

    `host` has the plugins, instead of those that are installed and those that the sweep's recipe names. With `need_data`, a
    `${data}` that no folder was given for is a problem. Without `trust` no plugin file is run.
    """
    given, renamed = sweep_of_1(load(path))
    for note in renamed:
        warnings.warn(f"{path}: {note}", FutureWarning, stacklevel=2)
    problems: list[str] = []
    file = checked(SweepFile, given, "", problems)
    if file is None:
        raise RecipeError(str(path), problems)
    base = base_recipe(given, path, changes.settings)
    host = host or load_plugins(plugin_files(base, path), trust=trust)
    points = points_of(file, problems)
    settings = {key: value for key, value in changes.settings.items() if key.split(".")[0] not in OWN_KEYS}
    common = change(change(base, dict(flat(file.set, "set", problems))), settings)
    problems += [*_wrong_columns(file), *_wrong_changes(changes, points)]
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
        data = change(_less(common, point, problems), point.settings)
        wanted[point.name] = _replaced(data, DATA, str(changes.data)) if changes.data else data
    if problems:
        raise RecipeError(str(path), problems)
    recipes = _resolve_all(wanted, host, path, out, need_data=need_data)
    keys = dict.fromkeys(key for point in points for key in point.settings if not _said_by_name(key, file))
    runs = tuple(PlannedRun(point, recipes[point.name]) for point in points)
    return Sweep(path.stem, file.about, out, file.columns, tuple(keys), runs, host, evaluate, changes.runs_code)


def _less(data: dict[str, Any], point: Point, problems: list[str]) -> dict[str, Any]:
    """Return the recipe data that a run starts from: without the keys that it leaves out."""
    for key in point.unset:
        try:
            data = without(data, key)
        except KeyError:
            problems.append(f"unset {key}: the recipe of run '{point.name}' does not say it, so there is nothing to leave out")
    return data


def _resolve_all(
    wanted: Mapping[str, dict[str, Any]], host: PluginHost, path: Path, out: Path, *, need_data: bool
) -> dict[str, Recipe]:
    """Return the recipe of each run; a problem that many runs have is reported once."""
    recipes: dict[str, Recipe] = {}
    found: dict[str, list[str]] = {}
    for name, data in wanted.items():
        problems = _uses_data(data) if need_data else []
        try:
            recipes[name] = Recipe.from_data(data, where=str(path), out=out / name, host=host)
        except RecipeError as error:
            problems += error.problems
        for problem in problems:
            found.setdefault(problem, []).append(name)
    if found:
        raise RecipeError(str(path), [_in_runs(problem, names, len(wanted)) for problem, names in found.items()])
    return recipes


def _said_by_name(key: str, file: SweepFile) -> bool:
    """Tell whether a key varies only among runs that have names: then the table shows the name instead."""
    return key not in dict(leaves(file.grid)) and all(entry.name for entry in file.runs if key in dict(leaves(entry.set)))


def _wrong_changes(changes: Changes, points: Sequence[Point]) -> list[str]:
    varied = {key: None for point in points for key in point.settings}
    problems = [f"--set {key}: the runs of this sweep differ in it" for key in changes.settings if overlaps(key, varied)]
    own = "a run of a sweep cannot set this; --out names the folder of the sweep"
    problems += [f"--set {key}: {own}" for key in changes.settings if key.split(".")[0] == "out"]
    if changes.data is not None and not changes.data.is_dir():
        problems.append(f"--data: there is no folder {changes.data}")
    return problems


def _replaced(value: Any, old: str, new: str) -> Any:
    """Return data with a text in it replaced everywhere."""
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
