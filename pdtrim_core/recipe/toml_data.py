"""What recipes say, as data: read from TOML, changed key by key, with defaults for the kinds that they leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdtrim_core.errors import RecipeError
from pdtrim_core.files.reading import DEPTH, FOLDER, UnreadableError, parse_toml, problem_in, read_toml
from pdtrim_core.wording import shortened

DEFAULTS: dict[str, Any] = {
    "scorer": "cosine",
    "searcher": "annealing",
    "distiller": "mse",
    "splitter": "gain",
    "recovery": [
        {"use": "exact-first-token", "optional": True},
        {"use": "fold", "stage": "prefill", "optional": True},
        {"use": "kv-refit", "optional": True},
        {"use": "fold", "stage": "decode", "optional": True},
    ],
    "objective": "kl",
    "calibration": "mini",
    "exporter": ["plan"],
    "report": ["table"],
}
STAGED_SPLITTER = "keep-search-result"
"""The splitter of a recipe that names none, where its searcher finds both stages."""
DEFAULT_QUANTIZER = "rtn"
"""The quantizer of a recipe that names formats and none."""
LISTS = ("recovery", "exporter", "report")
NONE = "none"
"""What a recipe says of a kind that it wants nothing of, where it may list several, or none."""


def load(path: Path) -> dict[str, Any]:
    """Return the data of a recipe file. Raises `RecipeError` naming the line for what is not TOML."""
    try:
        return read_toml(path)
    except FileNotFoundError:
        raise RecipeError(str(path), ["no such file"]) from None
    except UnreadableError as error:
        problem = f"not valid TOML: {error.reason}" if error.syntax else error.reason
        folder = error.reason == FOLDER
        raise RecipeError(str(path), ["this is a folder: name the recipe in it" if folder else problem]) from None


def plugin_files(data: Mapping[str, Any], recipe: Path) -> list[Path]:
    """Return the plugin files that a recipe names, relative to its own folder."""
    names = data.get("plugins", [])
    # A recipe may be reached by a link: then its plugins lie beside the link, or beside the file itself.
    folders = (recipe.parent, recipe.resolve().parent) if recipe.is_symlink() else (recipe.parent,)
    found = [[folder / name for folder in folders] for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [next((file for file in files if file.exists()), files[0]) for files in found]


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return the values of `--set KEY=VALUE` by dotted key, for `change`; a value is TOML, or else a text. The last one counts.

    Raises `RecipeError` for what has no key or no value.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError("--set", [f"'{shortened(setting)}': say KEY=VALUE, such as searcher.t0=5"])
        # What is said again comes behind all that was said before.
        changes.pop(key.strip(), None)
        try:
            changes[key.strip()] = _toml_value(value.strip())
        except UnreadableError as error:
            raise RecipeError("--set", [f"{shortened(key.strip())}: {error.reason}"]) from None
    return changes


def _toml_value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except UnreadableError as error:
        if not error.syntax:
            raise
    problem = problem_in(text)
    if problem:
        raise UnreadableError(problem)
    if text.startswith(("[", "{")):
        raise UnreadableError(
            f"'{shortened(text)}' is no list or table in TOML: texts in it stand in double quotes, and single quotes around the "
            "whole setting keep the shell from taking them away, such as --set 'plugins=[\"mine.py\"]'"
        )
    return text


def change(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return recipe data with values by dotted key put in, one after the other: {"searcher.t0": 5.0}.

    An entry of a list is named by its number from 0: {"recovery.1.stage": "decode"}. Raises `RecipeError` for an entry that is
    not there, and for a key of so many parts that data would be nested too deep.
    """
    changed = dict(data)
    for key, value in changes.items():
        if key.count(".") >= DEPTH:
            raise RecipeError(shortened(key, 50), [f"a key of more than {DEPTH} parts"])
        try:
            changed = _put(changed, key.split("."), value)
        except IndexError as error:
            raise RecipeError(shortened(key, 50), [str(error)]) from None
    return changed


def without(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return recipe data without the value at a dotted key. Raises `KeyError` where there is none."""
    first, dot, rest = key.partition(".")
    if not dot:
        return {name: value for name, value in data.items() if name != first} if first in data else _missing(key)
    inner = data.get(first)
    return {**data, first: without(inner, rest)} if isinstance(inner, dict) else _missing(key)


def _missing(key: str) -> dict[str, Any]:
    raise KeyError(key)


def _put(data: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return recipe data with one value put in; a component that was given by its name becomes a table on the way."""
    if len(keys) == 1:
        return {**data, keys[0]: value}
    inner = data.get(keys[0], DEFAULTS.get(keys[0], {}))
    if isinstance(inner, list):
        return {**data, keys[0]: _put_in_list(inner, keys, value)}
    inner = {"path" if keys[0] == "model" else "use": inner} if isinstance(inner, str) and inner != NONE else inner
    return {**data, keys[0]: _put(inner if isinstance(inner, dict) else {}, keys[1:], value)}


def _put_in_list(entries: Sequence[Any], keys: Sequence[str], value: Any) -> list[Any]:
    """Return a list with a value put into one of its entries. Raises `IndexError` in words where the key names none."""
    name, number, *rest = keys
    if not number.isdecimal() or int(number) >= len(entries):
        count = len(entries)
        there = f"{name}.0" + (f" to {name}.{count - 1}" if count > 1 else "") if count else "none"
        raise IndexError(f"{name} is a list: name one of its entries by its number ({there}), or set the whole list")
    entry = entries[int(number)]
    if not rest:
        changed = value
    else:
        changed = _put({"use": entry} if isinstance(entry, str) else entry if isinstance(entry, dict) else {}, rest, value)
    return [*entries[: int(number)], changed, *entries[int(number) + 1 :]]
