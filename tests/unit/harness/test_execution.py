"""Programs of a language model: those that reach their end pass, whatever else they do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pdtrim_core.harness.execution import passes


@pytest.mark.parametrize(
    ("program", "good"),
    [
        ("assert 1 + 1 == 2", True),
        ("print('words of its own')", True),
        ("assert 1 + 1 == 3", False),
        ("def f(:", False),
        ("import sys; sys.exit(0)", False),
        ("import os; os._exit(0)", False),
        ("input()", False),
        ("x = bytearray(8 * 2**30)", False),
    ],
)
def test_a_program_passes_when_it_runs_to_its_end(program: str, good: bool) -> None:
    assert passes(program, seconds=10) is good


def test_an_endless_program_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    program = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\nwhile True: pass"
    assert not passes(program, seconds=1)
    time.sleep(3)
    assert not mark.exists()


def test_a_program_runs_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert passes("open('left behind', 'w').write('x')", seconds=10)
    assert list(tmp_path.iterdir()) == []
