"""The folder of a run: its journal, its lock, and whose run it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli

from pdtrim_core.data.readings import Reading
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.elements import Drop, Element, KvOnly, Merge, Removal, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.results.run_folder import OWN_FILES, load_outcome, load_plan, open_run_folder
from pdtrim_core.testing.contracts import small_run

RECIPE: dict[str, Any] = {"seed": 0, "out": "here", "searcher": {"use": "annealing", "t0": 15.0}, "report": [{"use": "table"}]}
REST = ": start anew with --fresh, or choose another folder with --out"


def plan(*decode: Element) -> Plan:
    return Plan(decode=Removal(decode))


READINGS = {
    plan(Drop(1)): Reading(62.5, 0.625, (1.0, 0.0, 1 / 3), 100.0, 100.0),
    plan(Merge(3, 2), Shrink(5, "attention", (0, 1))): Reading(None, None, (0.0, None), 0.0, 41.25),
    Plan(Removal([KvOnly(4)])): Reading(1e-7, -23.5, (), -0.25),
}


def write_journal(folder: Path) -> Path:
    with open_run_folder(folder, RECIPE) as run:
        for number, (a_plan, reading) in enumerate(READINGS.items()):
            run.note("calibration" if number < 2 else "held out", a_plan, reading)
    return folder / "journal.jsonl"


def known_in(folder: Path, recipe: Mapping[str, Any] = RECIPE, *, fresh: bool = False) -> Mapping[str, Mapping[Plan, Reading]]:
    with open_run_folder(folder, recipe, fresh=fresh) as run:
        return run.known


def in_parts(count: int = 3) -> dict[str, dict[Plan, Reading]]:
    parts: dict[str, dict[Plan, Reading]] = {}
    for number, (a_plan, reading) in enumerate(list(READINGS.items())[:count]):
        parts.setdefault("calibration" if number < 2 else "held out", {})[a_plan] = reading
    return parts


# The journal


def test_a_new_folder_knows_nothing_and_holds_its_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    assert known_in(folder) == {}
    assert tomli.loads((folder / "recipe.toml").read_text()) == RECIPE


def test_measurements_are_there_again_for_the_next_run(tmp_path: Path) -> None:
    write_journal(tmp_path)
    assert known_in(tmp_path) == in_parts()


def test_a_measurement_is_on_disk_at_once(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, RECIPE) as run:
        run.note("calibration", *next(iter(READINGS.items())))
        assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1


def test_a_plan_measured_on_keeps_its_last_reading(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, RECIPE) as run:
        run.note("calibration", Plan(), Reading(None, None, (None,), ceiling=50.0))
        run.note("calibration", Plan(), Reading(40.0, 0.4, (0.4,)))
    assert known_in(tmp_path) == {"calibration": {Plan(): Reading(40.0, 0.4, (0.4,))}}


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_dropped_and_the_file_mended(tmp_path: Path, cut: int) -> None:
    journal = write_journal(tmp_path)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines)[:-cut])
    assert known_in(tmp_path) == in_parts(2)
    assert journal.read_text() == "".join(lines[:2])
    with open_run_folder(tmp_path, RECIPE) as run:
        run.note("held out", *list(READINGS.items())[2])
    assert journal.read_text() == "".join(lines)


def test_a_journal_of_one_torn_line_is_emptied(tmp_path: Path) -> None:
    journal = write_journal(tmp_path)
    journal.write_text('{"part": "cal')
    assert known_in(tmp_path) == {}
    assert journal.read_text() == ""


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        ("rubbish", "Expecting value: line 1 column 1 (char 0)"),
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("{}", "'part'"),
        ('{"part": "x", "plan": {"decode": []}}', "not a plan: it needs lists called 'prefill' and 'decode'"),
    ],
)
def test_a_garbage_line_is_named_by_its_number(tmp_path: Path, garbage: str, reason: str) -> None:
    journal = write_journal(tmp_path)
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], garbage, *lines[1:]]) + "\n")
    with pytest.raises(PdtrimError) as caught:
        known_in(tmp_path)
    assert str(caught.value) == f"{journal}, line 2, is no measurement ({reason}): start anew with --fresh"


@pytest.mark.parametrize("garbage", ["[]", "null", "5", '"x"', '{"part": "x", "plan": {"prefill": [], "decode": []}}'])
def test_json_that_is_no_measurement_is_refused_too(tmp_path: Path, garbage: str) -> None:
    journal = write_journal(tmp_path)
    journal.write_text(garbage + "\n")
    with pytest.raises(PdtrimError, match=r"line 1, is no measurement .*: start anew with --fresh"):
        known_in(tmp_path)


def test_a_journal_that_is_no_text_is_refused(tmp_path: Path) -> None:
    journal = write_journal(tmp_path)
    journal.write_bytes(journal.read_bytes() + b"\xff\xfe\n")
    with pytest.raises(PdtrimError, match="start anew with --fresh"):
        known_in(tmp_path)


def test_fresh_mends_a_garbage_journal(tmp_path: Path) -> None:
    journal = write_journal(tmp_path)
    journal.write_bytes(b"\xff rubbish\n")
    assert known_in(tmp_path, fresh=True) == {}
    assert journal.read_bytes() == b""


# Whose run it is


@pytest.mark.parametrize("changed", [{"out": "there"}, {"report": []}, {"exporter": ["plan"]}], ids=str)
def test_what_changes_no_measurement_may_differ(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_journal(tmp_path)
    assert known_in(tmp_path, {**RECIPE, **changed}) == in_parts()
    assert tomli.loads((tmp_path / "recipe.toml").read_text()) == {**RECIPE, **changed}


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({"seed": 1}, "seed"),
        ({"searcher": {"use": "greedy"}, "seed": 3}, "searcher.t0, searcher.use, seed"),
        ({"searcher": {"use": "annealing", "t0": 15.0, "out": "x"}}, "searcher.out"),
        ({"prune": {"blocks": 1}}, "prune"),
    ],
    ids=["seed", "two", "inner-out", "more"],
)
def test_another_recipe_is_refused_with_what_differs(tmp_path: Path, changed: dict[str, Any], keys: str) -> None:
    journal = write_journal(tmp_path)
    before = journal.read_text(), (tmp_path / "recipe.toml").read_text()
    with pytest.raises(PdtrimError) as caught:
        known_in(tmp_path, {**RECIPE, **changed})
    assert str(caught.value) == f"{tmp_path} holds a run of another recipe, which differs in {keys}{REST}"
    assert (journal.read_text(), (tmp_path / "recipe.toml").read_text()) == before


def test_a_recipe_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    write_journal(tmp_path)
    (tmp_path / "recipe.toml").write_text("seed =\n")
    with pytest.raises(PdtrimError) as caught:
        known_in(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'recipe.toml'} cannot be read (Invalid value (at line 1, column 7)): start anew with --fresh"
    )


def test_fresh_clears_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    write_journal(tmp_path)
    for name in OWN_FILES:
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").write_text("mine")
    assert known_in(tmp_path, {**RECIPE, "seed": 7}, fresh=True) == {}
    assert {file.name for file in tmp_path.iterdir()} == {"recipe.toml", "journal.jsonl", "notes.txt"}
    assert tomli.loads((tmp_path / "recipe.toml").read_text())["seed"] == 7
    assert (tmp_path / "journal.jsonl").read_text() == ""


def test_other_weights_or_data_are_refused(tmp_path: Path) -> None:
    write_journal(tmp_path)
    key = {"weights": "abc", "data": "def", "device": "cpu"}
    with open_run_folder(tmp_path, RECIPE) as run:
        run.write("environment.json", json.dumps(key))
        run.check_same(key)
        with pytest.raises(PdtrimError) as caught:
            run.check_same({**key, "weights": "x", "data": "y"})
    assert str(caught.value) == f"{tmp_path} holds measurements made with other weights and data{REST}"


def test_before_anything_is_measured_weights_may_change(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, RECIPE) as run:
        run.write("environment.json", '{"weights": "abc"}')
        run.check_same({"weights": "x"})


# One run at a time


def test_a_second_run_waits_outside(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, RECIPE) as run:
        run.note("calibration", Plan(), Reading(1.0, 0.01))
        for fresh in (False, True):
            with pytest.raises(PdtrimError) as caught, open_run_folder(tmp_path, RECIPE, fresh=fresh):
                pass
            assert str(caught.value) == (
                f"another run is working in {tmp_path}: wait for it, or choose another folder with --out"
            )
    assert known_in(tmp_path) == {"calibration": {Plan(): Reading(1.0, 0.01)}}


def test_a_run_that_failed_lets_the_next_one_in(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_run_folder(tmp_path, RECIPE):
        raise ZeroDivisionError
    assert known_in(tmp_path) == {}


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(PdtrimError) as caught, open_run_folder(tmp_path / "mine", RECIPE):
        pass
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'mine'}: File exists; what was measured before is kept: mend this and run the same "
        "command again"
    )


# Loading


def test_a_folder_that_is_none_has_no_outcome(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError) as caught:
        load_outcome(tmp_path / "gone")
    assert str(caught.value) == f"{tmp_path / 'gone'} is not a folder: name the folder of a run"


def test_a_folder_of_something_else_has_no_outcome(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError) as caught:
        load_outcome(tmp_path)
    assert str(caught.value) == f"{tmp_path} has no outcome.json: name the folder of a run"


def test_a_run_that_has_only_begun_has_no_outcome(tmp_path: Path) -> None:
    write_journal(tmp_path)
    with pytest.raises(PdtrimError) as caught:
        load_outcome(tmp_path)
    assert str(caught.value) == f"{tmp_path} has no outcome.json: its run has not finished: run its recipe again to go on"


def test_a_damaged_outcome_is_named(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text("{}")
    with pytest.raises(PdtrimError) as caught:
        load_outcome(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'outcome.json'} is not the outcome of a run"


def test_a_plan_is_loaded_from_its_file_or_its_folder(tmp_path: Path) -> None:
    saved = SavedPlan(plan(Drop(1)), "tiny", "abc", 3)
    (tmp_path / "plan.json").write_text(saved.to_json())
    assert load_plan(tmp_path) == load_plan(tmp_path / "plan.json") == saved


def test_a_run_without_a_plan_file_has_its_plan_in_its_outcome(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text(small_run()[0].to_json())
    assert load_plan(tmp_path) == small_run()[0].plan


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "plan.json"):
        with pytest.raises(PdtrimError) as caught:
            load_plan(path)
        assert str(caught.value) == f"{tmp_path / 'plan.json'} does not exist"


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text("{}")
    with pytest.raises(PdtrimError) as caught:
        load_plan(file)
    assert str(caught.value) == f"{file} is not a plan: KeyError('format')"


@pytest.mark.parametrize("name", ["plan.json", "outcome.json"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{\xff\xfe\x00")
    with pytest.raises(PdtrimError) as caught:
        load_plan(tmp_path) if name == "plan.json" else load_outcome(tmp_path)
    assert str(caught.value) == f"{tmp_path / name} is not text in UTF-8 (byte 1)"
