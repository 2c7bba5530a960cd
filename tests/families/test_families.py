"""Every type that docs/reference/families.md lists does what it says there: `make test-families`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pdtrim_core import PluginHost

pytestmark = pytest.mark.families

ROOT = Path(__file__).parents[2]
TRIED: dict[str, dict[str, str]] = json.loads((ROOT / "docs/results/families/tried.json").read_text())["families"]
OPENED = [kind for kind, found in TRIED.items() if "blocks" in found]
REFUSED = [kind for kind, found in TRIED.items() if "refused" in found]


@pytest.fixture(scope="module")
def families() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("families")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_at_least_60_types_open() -> None:
    assert len(OPENED) >= 60


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OPENED)
def test_a_type_does_what_the_page_says(kind: str, families: Any, host: PluginHost) -> None:
    with families.quiet():
        found = families.tried(kind, host)
    lost = {
        column: found.get(column)
        for column, expected in TRIED[kind].items()
        if not expected.startswith("no") and found.get(column) != expected
    }
    assert lost == {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_type_is_refused_for_the_reason_that_the_page_gives(kind: str, families: Any, host: PluginHost) -> None:
    with families.quiet():
        found = families.tried(kind, host)
    assert families.shortened(found.get("refused", ""), 300) == TRIED[kind]["refused"]
