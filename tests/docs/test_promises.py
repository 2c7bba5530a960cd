"""The page of promises: each line names tests, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "promises.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:50])
def test_every_promise_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], f"{file} has no {name}"


def test_there_are_promises_of_every_sort() -> None:
    assert len(ROWS) >= 20
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == [
        "Crashes",
        "Several commands at once",
        "Stored values",
        "Determinism",
        "Files of others",
        "Untrusted models",
    ]
