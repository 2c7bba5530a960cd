"""The points of a sweep: the settings of each run, under the name of its folder."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdtrim_core.results.task_results import Variant
from pdtrim_core.sweeping.sweep_file import Entry, SweepFile
from pdtrim_core.sweeping.table import short_keys

MOST_RUNS = 1000
MOST_KEYS = 1000
"""Keys of the recipe that one file sets, at most: each is compared with each other."""
LONGEST_NAME = 200
OWN_KEYS = ("out", "plugins")
"""Keys of a recipe that no run of a sweep may set: each has its own folder, and one set of plugins is loaded."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")

Settings = dict[str, Any]
"""Values by dotted key, such as {"searcher.t0": 5}."""


@dataclass(frozen=True)
class Point:
    """One line of the table: the name of its run, the name that the file gave it, the values that vary, what is evaluated.

    `unset` are the keys of the recipe that the run leaves out.
    """

    name: str
    given_name: str
    settings: Settings
    variants: tuple[Variant, ...] = ()
    unset: tuple[str, ...] = ()


def points_of(file: SweepFile, problems: list[str]) -> list[Point]:
    """Return the lines of the table; none where the file does not say them well."""
    grid = dict(flat(file.grid, "grid", problems))
    for key, values in grid.items():
        if not isinstance(values, list):
            problems.append(f"grid.{key}: must be a list of values (got {values!r})")
        elif not values:
            problems.append(f"grid.{key}: an empty list gives no runs")
    if len(file.runs) > MOST_RUNS:
        problems.append(f"runs: these are {len(file.runs)} runs, more than {MOST_RUNS}")
        return []
    if not grid and not file.runs:
        problems.append("nothing varies: give [grid], [[runs]] or both")
    own = [(entry, dict(flat(entry.set, f"runs.{number}.set", problems))) for number, entry in enumerate(file.runs)]
    for number, (entry, settings) in enumerate(own):
        # A grid may vary an option of what a run names anew; it comes after it.
        problems += [f"runs.{number}.set.{key}: is in [grid] too" for key in settings if _within(key, grid)]
        problems += [f"runs.{number}.unset.{key}: is set there too" for key in entry.unset if overlaps(key, {**settings, **grid})]
        if entry.variants and file.evaluate is None:
            problems.append(f"runs.{number}.variants: there is no table [evaluate] that says what they are evaluated on")
    count = math.prod(len(values) for values in grid.values() if isinstance(values, list)) * max(1, len(own))
    if count > MOST_RUNS:
        problems.append(f"grid: these are {count} runs, more than {MOST_RUNS}")
    keys = {*grid, *(key for _, settings in own for key in settings)}
    if len(keys) > MOST_KEYS:
        problems.append(f"runs: these are {len(keys)} keys, more than {MOST_KEYS}")
    return [] if problems else _named(own or [(Entry(), {})], file, grid, problems)


def _named(
    own: Sequence[tuple[Entry, Settings]], file: SweepFile, grid: Mapping[str, Sequence[Any]], problems: list[str]
) -> list[Point]:
    """Return each run in each combination of the grid; a name is made from what it leaves open."""
    labels = short_keys([*grid, *dict.fromkeys(key for _, settings in own for key in settings)])
    points: dict[str, Point] = {}
    for entry, settings in own:
        given_name, variants = entry.name, entry.variants or (file.evaluate.variants if file.evaluate else ())
        for values in itertools.product(*grid.values()):
            combination = dict(zip(grid, values, strict=True))
            open_keys = combination if given_name else {**settings, **combination}
            parts = [f"{labels[key]}={_shown(value)}" for key, value in open_keys.items()]
            parts += [] if given_name else [f"no-{key}" for key in entry.unset]
            name = ",".join([given_name, *parts] if given_name else parts)
            if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
                problems.append(f"runs: '{name}' is no name for a folder: give a name of letters, digits and . _ = , + -")
            elif name in points:
                problems.append(f"runs: two runs are called '{name}': give each a name of its own")
            points[name] = Point(name, given_name, {**settings, **combination}, variants, entry.unset)
    return list(points.values())


def flat(table: Mapping[str, Any], place: str, problems: list[str]) -> list[tuple[str, Any]]:
    """Return the values of a table by dotted key, whether it was written nested, with dotted keys, or quoted.

    A table with the key `use` is a value: it names a component anew. Any other table changes the keys that it has.
    """
    found: dict[str, Any] = {}
    given = list(leaves(table))
    if len(given) > MOST_KEYS:
        problems.append(f"{place}: these are {len(given)} keys, more than {MOST_KEYS}")
        return []
    for key, value in given:
        if not all(key.split(".")):
            problems.append(f"{place}.{key}: is no key of a recipe")
        elif key.split(".")[0] in OWN_KEYS:
            problems.append(f"{place}.{key}: a run of a sweep cannot set this; the sweep or its recipe can")
        elif overlaps(key, found):
            problems.append(f"{place}.{key}: is given twice")
        found[key] = value
    return list(found.items())


def leaves(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a table, however deep, by dotted key."""
    for key, value in table.items():
        if isinstance(value, dict) and value and not isinstance(value.get("use"), str):
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in leaves(value))
        else:
            yield key, value


def overlaps(key: str, others: Mapping[str, Any]) -> bool:
    """Tell whether a key is one of others, or a part of one of them, or one is a part of it."""
    return _within(key, others) or any(f"{other}.".startswith(f"{key}.") for other in others)


def _within(key: str, others: Mapping[str, Any]) -> bool:
    return any(f"{key}.".startswith(f"{other}.") for other in others)


def _shown(value: Any) -> str:
    """Return a value as a part of a folder's name."""
    if isinstance(value, dict):
        return str(value["use"]) if "use" in value else ",".join(f"{key}-{_shown(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "+".join(_shown(item) for item in value) or "none"
    if isinstance(value, str):
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", value).strip("-") or "none"
    return str(value).lower()
