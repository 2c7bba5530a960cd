"""The plan as a file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from pdtrim_core import SavedPlan
from pdtrim_core.testing.contracts import small_run
from pdtrim_plugins.exporters.plan import PlanFile

if TYPE_CHECKING:
    from pathlib import Path


def test_the_plan_file_reads_back_as_the_plan_of_the_run(tmp_path: Path) -> None:
    outcome, model = small_run()
    (path,) = PlanFile().export(outcome, model, tmp_path)
    assert path == tmp_path / "plan.json"
    assert SavedPlan.from_json(path.read_text()) == outcome.plan


def test_the_plan_file_says_which_model_it_is_for_and_where_its_kv_come_from(tmp_path: Path) -> None:
    outcome, model = small_run()
    (path,) = PlanFile().export(outcome, model, tmp_path)
    data = json.loads(path.read_text())
    assert data["model"] == {"name": "tiny:llama", "fingerprint": model.fingerprint, "blocks": 6}
    assert len(data["kv_map"]) == 4
    assert data["first_token"] == "decode"


def test_a_run_without_a_plan_gets_no_plan_file(tmp_path: Path) -> None:
    outcome, model = small_run()
    assert list(PlanFile().export(replace(outcome, saved_plan=None), model, tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_the_same_outcome_gives_the_same_bytes(tmp_path: Path) -> None:
    outcome, model = small_run()
    (first,) = PlanFile().export(outcome, model, tmp_path)
    before = first.read_bytes()
    (again,) = PlanFile().export(outcome, model, tmp_path)
    assert again.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
