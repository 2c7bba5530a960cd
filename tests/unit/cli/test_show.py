"""`pdtrim-core show A B`: what two plans lose, and what they read of prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pdtrim_core import Drop, Plan, Removal, SavedPlan
from pdtrim_core.api import Edges, FirstOnly, Selection
from pdtrim_core.cli.show import show
from pdtrim_core.testing.contracts.small_run import small_run


def test_plans_that_read_other_tokens_of_prompts_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = small_run()[0].plan
    first, *_, last = (layer.block for layer in saved.plan.layers("decode", saved.block_count))
    chosen: dict[str, list[Selection]] = {
        "all.json": [],
        "one.json": [FirstOnly(last)],
        "two.json": [FirstOnly(last), Edges(first, 0.1, 0.2)],
    }
    for name, selections in chosen.items():
        (tmp_path / name).write_text(replace(saved, plan=saved.plan.selecting(selections)).to_json())
    show(tmp_path / "one.json", tmp_path / "two.json")
    lines = capsys.readouterr().out.splitlines()
    told = next(line for line in lines if line.startswith("read of prompts: "))
    assert f"only {tmp_path / 'one.json'}: -;" in told
    assert f"only {tmp_path / 'two.json'}: {first} edges 0.1+0.2;" in told
    assert told.endswith(f"both: {last} first")
    show(tmp_path / "all.json", tmp_path / "all.json")
    assert "read of prompts" not in capsys.readouterr().out


def test_blocks_of_two_plans_are_sorted_as_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = SavedPlan(Plan.unified(Removal([Drop(16), Drop(5), Drop(18)])), "m", "f", 30)
    (tmp_path / "one.json").write_text(saved.to_json())
    show(tmp_path / "one.json", tmp_path / "one.json")
    assert "decode: " in (told := capsys.readouterr().out)
    assert told.endswith("both: 5, 16, 18\n")
