"""Broken, slow and clashing packages of other people, seen from the command line: no run that does without them suffers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
BROKEN = Path(__file__).parents[1] / "broken_dist"
ALL = os.pathsep.join(str(folder) for folder in sorted(BROKEN.iterdir()))


@pytest.fixture
def path() -> str:
    """Every fake distribution at once, and what the tests themselves need."""
    return os.pathsep.join([ALL, os.environ.get("PYTHONPATH", "")])


def test_no_broken_plugin_takes_a_run_down_that_does_not_use_it(program: Cli, recipe: Path, path: str) -> None:
    done = program("run", recipe, "--set", "searcher=greedy", "--json", PYTHONPATH=path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["block_count"] == 6
    assert "model 'picky' (broken-questions 1.0) failed when it was tried with" in done.err
    assert "plugin broken-listener:parts failed in pdtrim_" in done.err
    assert "plugin broken-wrappers:parts failed in pdtrim_step_started and is muted: RuntimeError" in done.err
    assert "Traceback" not in done.err


def test_plugins_shows_what_is_broken_and_why_what_is_slow_and_what_clashes(program: Cli, path: str) -> None:
    done = program("plugins", PYTHONPATH=path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    failed = lines[lines.index("failed") + 1 : lines.index("clashes")]
    assert "  parts (broken-import 1.0): cannot import broken_import: ModuleNotFoundError: No module named" in "\n".join(failed)
    assert {line.split("(")[1].split(" ")[0] for line in failed} >= {"broken-hook", "broken-old", "broken-hostile"}
    assert "  scorer 'twin' has 2 origins: say use = 'twin-one/twin' or 'twin-two/twin'" in lines[lines.index("clashes") + 1 :]
    slow = lines[lines.index("slow") + 1]
    assert slow.startswith("  parts (broken-slow 1.0): took ")
    assert slow.endswith(" s to import: every command waits for it; it should import what is heavy inside its functions")
    assert sum(line.endswith(("[twin-one 1.0]", "[twin-two 1.0]")) for line in lines) == 2


def test_plugins_can_be_left_out(program: Cli, path: str) -> None:
    done = program("plugins", "--json", PYTHONPATH=path, PDTRIM_PLUGINS="pdtrim-core,twin-one")
    data = json.loads(done.out)
    assert {component["source"] for component in data["components"]} == {"pdtrim-core", "twin-one"}
    assert (data["failures"], data["slow"], data["clashes"]) == ([], [], [])
    assert "broken-import" in data["left_out"]


def test_a_misspelt_name_of_a_plugin_is_an_error_of_the_command_line(program: Cli) -> None:
    done = program("plugins", PDTRIM_PLUGINS="pdtrim-cor")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        "error: PDTRIM_PLUGINS: 1 problem",
        "  no installed plugin is called 'pdtrim-cor'; did you mean 'pdtrim-core'?",
    ]


def test_hook_calls_are_traced_to_stderr(program: Cli, recipe: Path) -> None:
    done = program("run", recipe, "--set", "searcher=greedy", "--json", PDTRIM_TRACE="1")
    assert done.code == 0, done.err
    json.loads(done.out)
    traced = [line for line in done.err.splitlines() if line.startswith("trace: ")]
    assert any(line.startswith("trace: pdtrim-core pdtrim_scorers() -> [Cosine, ") for line in traced)
    assert any("pdtrim_candidate_measured(candidate=Candidate(" in line for line in traced)
