"""What recipes say, as data: read from TOML, changed key by key, with what stands for a kind that they leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from pdtrim_core.errors import RecipeError

DEFAULTS: dict[str, Any] = {
    "scorer": "cosine",
    "searcher": "annealing",
    "distiller": "mse",
    "splitter": "gain",
    "objective": "accuracy",
    "calibration": "mini",
    "exporter": ["plan"],
    "report": ["table"],
}
STAGED_SPLITTER = "keep-search-result"
"""The splitter of a recipe that names none, where its searcher finds both stages."""
LISTS = ("exporter", "report")


def load(path: Path) -> dict[str, Any]:
    """Return the data of a recipe file. Raises `RecipeError` naming the line for what is not TOML."""
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(str(path), ["no such file"]) from None
    except IsADirectoryError:
        raise RecipeError(str(path), ["this is a folder: name the recipe in it"]) from None
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), [f"not text in UTF-8 (byte {error.start})"]) from None
    except tomli.TOMLDecodeError as error:
        raise RecipeError(str(path), [f"not valid TOML: {error}"]) from None


def plugin_files(data: Mapping[str, Any], recipe: Path) -> list[Path]:
    """Return the plugin files that a recipe names, relative to its own folder."""
    names = data.get("plugins", [])
    return [recipe.parent / name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def override(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return recipe data with settings of the form "key.subkey=value" put in; a value is TOML, or else a string."""
    for setting in settings:
        keys, value = parse_setting(setting)
        data = put(data, keys, value)
    return data


def change(data: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return recipe data with values by dotted key put in: {"searcher.t0": 5.0}."""
    changed = dict(data)
    for key, value in (changes or {}).items():
        changed = put(changed, key.split("."), value)
    return changed


def parse_setting(setting: str) -> tuple[list[str], Any]:
    """Return the keys and the value of a setting of the form "key.subkey=value"."""
    key, equals, value = setting.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError("--set", [f"'{setting}': say KEY=VALUE, such as searcher.t0=5"])
    return key.strip().split("."), _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text


def put(data: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return recipe data with one value put in; a component that was given by its name becomes a table on the way."""
    if len(keys) == 1:
        return {**data, keys[0]: value}
    inner = data.get(keys[0], DEFAULTS.get(keys[0], {}))
    inner = {"path" if keys[0] == "model" else "use": inner} if isinstance(inner, str) else inner
    return {**data, keys[0]: put(inner if isinstance(inner, dict) else {}, keys[1:], value)}
