"""What version 0.1 wrote, in the words of this one: outcomes, results of tasks, lines of a journal.

Each function takes the data of a file as JSON has them and returns them as this version writes them. A file that is no data of
its sort goes through unchanged, for its reader to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {NAMES_OF_1.get(key, key): _renamed(inner) for key, inner in value.items()}
    return [_renamed(inner) for inner in value] if isinstance(value, list) else value
