"""What a run has spent and what it was made from, in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdtrim_core.results.run_state import RunState, read_state, stamp_of, write_state


def test_a_state_reads_back(tmp_path: Path) -> None:
    state = RunState({"search": 1.5}, {"measured": 3}, {"the engine": "1"}, {"plan.json": "3 4"})
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


@pytest.mark.parametrize("text", [None, "", "[]", '{"seconds": {"search": "long"}}', '{"candidates": 3}'])
def test_a_folder_without_a_state_that_can_be_read_has_an_empty_one(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "state.json").write_text(text)
    assert read_state(tmp_path) == RunState()


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    found = [stamp_of(file)]
    for text in ("one", "longer"):
        file.write_text(text)
        found.append(stamp_of(file))
    assert found[0] == "gone"
    assert len(set(found)) == 3
    assert stamp_of(file) == found[2]
