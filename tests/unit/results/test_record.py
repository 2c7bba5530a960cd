"""What the folder of a run has to tell."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import Drop, PdtrimError, Plan, Removal, SearchStep, read_record
from pdtrim_core.results.outcome import Outcome
from tests.browser import runs

if TYPE_CHECKING:
    from pathlib import Path


def test_a_finished_run_has_its_outcome_and_its_results(tmp_path: Path) -> None:
    record = read_record(runs.write_run(tmp_path / "r", runs.joint(), tasks=True))
    assert record.outcome == runs.joint()
    assert record.recipe == runs.RECIPE
    assert record.name == "r"
    assert {result.task for result in record.results} >= {"mmlu", "wikitext"}
    assert record.readings == {}


def test_a_run_that_stopped_has_its_recipe_scores_and_readings_in_order(tmp_path: Path) -> None:
    record = read_record(runs.write_unfinished(tmp_path / "r"))
    assert record.outcome is None
    assert record.recipe["model"]["path"] == "some/model"
    assert len(record.scores["block"]) == 30
    plans = list(record.readings["calibration"])
    assert plans[:2] == [Plan(), Plan.unified(Removal([Drop(1), Drop(2)]))]


def test_a_run_that_is_writing_its_outcome_gives_it(tmp_path: Path) -> None:
    assert read_record(tmp_path, runs.big()).outcome == runs.big()


def test_a_folder_of_nothing_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError, match=r"has no outcome\.json: name the folder of a run"):
        read_record(tmp_path)


def test_a_line_of_a_journal_that_is_none_is_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("{}\n")
    with pytest.warns(UserWarning, match=r"journal\.jsonl, line 1, is no measurement"):
        assert read_record(tmp_path).readings == {}


def test_data_that_are_no_table_tell_nothing(tmp_path: Path) -> None:
    folder = runs.write_unfinished(tmp_path / "r")
    (folder / "environment.json").write_text("[]")
    assert read_record(folder).environment == {}


def test_steps_and_norms_come_back_from_the_file() -> None:
    of = runs.big()
    assert Outcome.from_json(of.to_json()) == of
    old = replace(of, norms=(), search=())
    data = json.loads(old.to_json())
    del data["norms"], data["search"]
    assert Outcome.from_json(json.dumps(data)) == old


@pytest.mark.parametrize(
    ("score", "floor", "taken"), [(50.0, None, True), (50.0, 50.0, True), (49.9, 50.0, False), (None, 50.0, False)]
)
def test_a_step_is_taken_where_its_floor_is_reached(score: float | None, floor: float | None, taken: bool) -> None:
    assert SearchStep("", "", score, 60.0, floor).taken is taken
