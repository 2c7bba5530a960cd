"""What version 0.1 wrote, in the words of this one: recipes, sweeps, outcomes, results of tasks, lines of a journal.

Each function takes the data of a file and returns them as this version writes them. What is no data of its sort goes through
unchanged, for its reader to refuse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

NAMES_OF_1: Mapping[str, str] = {"points": "score", "spared": "kept_in_prefill"}
"""Keys of format 1 at any depth of an outcome's tables, and what they are called since format 2."""
TABLES_OF_1 = ("rows", "gains", "search")
"""The keys of an outcome whose tables have such keys."""


def outcome_of_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of an outcome of format 1 as format 2 has them."""
    tables = {key: _renamed(data[key]) for key in TABLES_OF_1 if key in data}
    return {**data, **tables, "format": 2}


def task_result_of_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a task's result of format 1 as format 2 has them."""
    rest = {key: value for key, value in data.items() if key != "side"}
    return {**rest, "variant": data.get("side"), "format": 2}


def journal_line_of_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a measurement of a journal, whose lines have no format of their own, as this version writes it."""
    return {NAMES_OF_1.get(key, key): value for key, value in data.items()}


def recipe_of_1(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the data of a recipe with the keys and names of 0.1 put into this version's, and a sentence for each of them."""
    changed, notes = dict(data), []
    for table, key, modern in RECIPE_KEYS_OF_1:
        inner = changed.get(table)
        if isinstance(inner, dict) and key in inner:
            rest = {name: value for name, value in inner.items() if name != key}
            now = modern(inner[key])
            if not now.keys() & rest.keys():
                changed[table] = {**rest, **now}
                said = " and ".join(f"{table}.{name} = {_toml(value)}" for name, value in now.items())
                notes.append(f"{table}.{key} = {_toml(inner[key])} is {said} since 0.2")
    searcher, search = changed.get("searcher"), changed.get("search", {})
    if isinstance(searcher, dict) and "caution" in searcher and isinstance(search, dict) and "caution" not in search:
        changed["searcher"] = {name: value for name, value in searcher.items() if name != "caution"}
        changed["search"] = {**search, "caution": searcher["caution"]}
        value = _toml(searcher["caution"])
        notes.append(f"searcher.caution = {value} is search.caution = {value} since 0.2")
    if "splitter" in changed:
        changed["splitter"], notes_on_splitter = _splitter_of_1(changed["splitter"])
        notes += notes_on_splitter
    return changed, notes


def sweep_of_1(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the data of a sweep file with the keys of 0.1 put into this version's, and a sentence for each of them.

    The recipes of its runs are read as recipes are, by `recipe_of_1`.
    """
    changed, notes = dict(data), []
    if _has_old_sides(data.get("evaluate")):
        changed["evaluate"] = _variants_of_1(data["evaluate"])
        notes.append("evaluate.sides is evaluate.variants since 0.2")
    if isinstance(data.get("runs"), list) and any(map(_has_old_sides, data["runs"])):
        changed["runs"] = [_variants_of_1(run) if _has_old_sides(run) else run for run in data["runs"]]
        notes.append("runs.sides is runs.variants since 0.2")
    return changed, notes


def resolved_recipe_of_1(data: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a recipe that a run wrote with every option spelt out, as this version would write it.

    `now` are those of the recipe that the run is to go on with, from which come the parts that 0.1 did not have.
    """
    changed, _ = recipe_of_1(data)
    if isinstance(changed.get("prune"), dict):
        if "pruner" not in changed:
            changed["prune"] = {"merges": True, "parts": False, **changed["prune"]}
        # Since nothing that 0.1 measured is taken over, a run goes on as this version would begin it.
        if isinstance(changed.get("search", {}), dict):
            changed["search"] = {**SEARCH_SINCE_2, **changed.get("search", {})}
        changed = {**{key: now[key] for key in PARTS_SINCE_2 if key in now}, **changed}
    for kind, name, since in OPTIONS_SINCE_2:
        component = changed.get(kind)
        if isinstance(component, dict) and component.get("use") == name:
            changed[kind] = {**since, **component}
    return changed


def _splitter_of_1(given: Any) -> tuple[Any, list[str]]:
    notes = []
    options = dict(given) if isinstance(given, dict) else {"use": given}
    name = options.get("use")
    if isinstance(name, str) and name.rpartition("/")[2] in SPLITTERS_OF_1:
        source, slash, bare = name.rpartition("/")
        options["use"] = f"{source}{slash}{SPLITTERS_OF_1[bare]}"
        notes.append(f"splitter '{name}' is '{options['use']}' since 0.2")
    if name in (None, "gain") and options.get("unit") == "points":
        options["unit"] = "score"
        notes.append('splitter.unit = "points" is splitter.unit = "score" since 0.2')
    return options if isinstance(given, dict) else options["use"], notes


def _has_old_sides(table: Any) -> bool:
    return isinstance(table, dict) and "sides" in table and "variants" not in table


def _variants_of_1(table: Mapping[str, Any]) -> dict[str, Any]:
    return {"variants" if key == "sides" else key: value for key, value in table.items()}


def _merges_of_1(given: Any) -> dict[str, Any]:
    """Return what a threshold means: one that no cosine reaches turns merges off."""
    off = isinstance(given, int | float) and not isinstance(given, bool) and given > 1
    return {"merges": False} if off else {"merge_threshold": given}


def _tail_of_1(given: Any) -> dict[str, Any]:
    return {"truncate_prefill": {"free": True, "full": False}.get(given, given) if isinstance(given, str) else given}


def _placement_of_1(given: Any) -> dict[str, Any]:
    return {"placement": given}


RECIPE_KEYS_OF_1: tuple[tuple[str, str, Callable[[Any], dict[str, Any]]], ...] = (
    ("prune", "merge_above", _merges_of_1),
    ("evaluation", "prefill_tail", _tail_of_1),
    ("model", "device", _placement_of_1),
)
"""Tables of a recipe, keys that they had in 0.1, and what such a key's value says now."""
NOW_CALLED: Mapping[str, str] = {
    "prune.merge_above": "prune.merge_threshold",
    "evaluation.prefill_tail": "evaluation.truncate_prefill",
    "model.device": "model.placement",
    "searcher.caution": "search.caution",
    "evaluate.sides": "evaluate.variants",
    "runs.sides": "runs.variants",
}
"""Keys of 0.1 in recipes and sweeps, and what each is called now; they are left as they are where the data have both."""
SEARCH_SINCE_2: Mapping[str, Any] = {"mode": "paired", "error": 0.05, "recovered": False, "recovered_tokens": 4096}
OPTIONS_SINCE_2: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("objective", "margin", {"per": "byte"}),
    ("calibration", "mini", {"prose": 0.0}),
    ("model", "folder", {"merge_adapter": False}),
)
PARTS_SINCE_2 = ("recovery", "recovery_data")
"""What a recipe of this version says where one of 0.1 says nothing: of the search, of components by kind and name, and the keys
of parts, whatever they say."""
SPLITTERS_OF_1: Mapping[str, str] = {"as-found": "keep-search-result"}
"""Splitters whose name was another one in 0.1."""


def _toml(value: Any) -> str:
    """Return a value as a recipe says it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, default=str)


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {NAMES_OF_1.get(key, key): _renamed(inner) for key, inner in value.items()}
    return [_renamed(inner) for inner in value] if isinstance(value, list) else value
