"""The folder of a run: its journal, its lock, and whose run it is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli

from pdtrim_core.data.readings import Reading
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.elements import Drop, Element, KvOnly, Merge, Removal, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.results.run_folder import (
    OWN_FILES,
    OWN_FOLDERS,
    changed_keys,
    load_outcome,
    load_plan,
    measured_in,
    open_run_folder,
)
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
        return {
            part: run.recall(part, lambda _plan: "") for part in ("calibration", "held out") if run.recall(part, lambda _plan: "")
        }


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


GARBAGE = [
    (b"rubbish", "Expecting value: line 1 column 1 (char 0)"),
    (b"", "Expecting value: line 1 column 1 (char 0)"),
    (b"{}", "it has no 'part'"),
    (b'{"part": "x", "plan": {"decode": []}}', "not a plan: it needs lists called 'prefill' and 'decode'"),
    (b'{"part": "x", "plan": {"prefill": [], "decode": []}}', "items must be a list of numbers"),
    (b'{"part": 5, "plan": {"prefill": [], "decode": []}}', "5 is no text"),
    (b'{"part": "x", "forget": [{}]}', "{} is no text"),
    (b"[]", "it is no table"),
    (b"null", "it is no table"),
    (b"5", "it is no table"),
    (b'"x"', "it is no table"),
    (b"\xff\xfe", "not text in UTF-8 (byte 0)"),
]


@pytest.mark.parametrize(("garbage", "reason"), GARBAGE)
def test_a_garbage_line_is_lost_alone_and_named_by_its_number(tmp_path: Path, garbage: bytes, reason: str) -> None:
    journal = write_journal(tmp_path)
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([lines[0], garbage, *lines[1:]]) + b"\n")
    assert known_in(tmp_path) == in_parts()
    said = f"{journal}, line 2, is no measurement ({reason}) and is left out"
    with open_run_folder(tmp_path, RECIPE) as run:
        assert run.lost == (said,)
    with pytest.warns(UserWarning, match="is no measurement") as warned:
        assert measured_in(tmp_path) == in_parts()
    assert [str(warning.message) for warning in warned] == [said]


IMPOSSIBLE = [
    ({"score": None, "mean": None, "items": [1.0, None]}, "a reading that was cut short needs a ceiling"),
    ({"score": 1e300, "mean": 1.0, "items": [1.0]}, "a score of 1e+300: scores go from 0 to 100"),
    ({"score": -1.0, "mean": 1.0, "items": [1.0]}, "a score of -1: scores go from 0 to 100"),
    ({"score": 50.0, "mean": None, "items": [1.0]}, "a reading with a score needs a mean and the value of each item"),
    ({"score": 50.0, "mean": 0.5, "items": [1.0, None]}, "a reading with a score needs a mean and the value of each item"),
]


@pytest.mark.parametrize(("reading", "reason"), IMPOSSIBLE)
def test_a_reading_that_cannot_be_is_no_measurement(tmp_path: Path, reading: dict[str, Any], reason: str) -> None:
    journal = write_journal(tmp_path)
    journal.write_text(json.dumps({"part": "calibration", "plan": {"prefill": [], "decode": []}, **reading}) + "\n")
    with open_run_folder(tmp_path, RECIPE) as run:
        assert run.lost == (f"{journal}, line 1, is no measurement ({reason}) and is left out",)


def test_a_reading_of_another_number_of_items_is_not_recalled(tmp_path: Path) -> None:
    with open_run_folder(tmp_path, RECIPE) as run:
        run.note("calibration", Plan(), Reading(50.0, 0.5, (1.0, 0.0)))
    with open_run_folder(tmp_path, RECIPE) as run:
        assert run.recall("calibration", lambda _plan: "", items=2) == {Plan(): Reading(50.0, 0.5, (1.0, 0.0))}
        assert run.recall("calibration", lambda _plan: "", items=3) == {}


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_no_file_in_the_place_of_the_journal_is_neither_written_to_nor_waited_for(tmp_path: Path, fresh: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    for sort in ("link", "pipe"):
        folder = tmp_path / sort
        folder.mkdir()
        if sort == "link":
            (folder / "journal.jsonl").symlink_to(victim)
        else:
            os.mkfifo(folder / "journal.jsonl")
        with (
            pytest.raises(PdtrimError, match=r"journal\.jsonl is no regular file, so a run does not write to it: remove"),
            open_run_folder(folder, RECIPE, fresh=fresh),
        ):
            pass
    assert victim.read_text() == "theirs"


@pytest.mark.parametrize("name", OWN_FOLDERS)
def test_a_link_in_the_place_of_an_own_folder_is_not_written_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "theirs", target_is_directory=True)
    with pytest.raises(PdtrimError, match=rf"{name} is a link"), open_run_folder(tmp_path / "run", RECIPE, fresh=True):
        pass


def test_of_many_garbage_lines_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    journal = write_journal(tmp_path)
    journal.write_bytes(journal.read_bytes() + b"x\n" * 1000)
    with open_run_folder(tmp_path, RECIPE) as run:
        assert [line.partition(" (")[0] for line in run.lost[:3]] == [
            f"{journal}, line {n}, is no measurement" for n in (4, 5, 6)
        ]
        assert run.lost[3:] == (f"{journal}: 997 more lines are no measurements and are left out",)


def test_what_other_code_measured_is_forgotten_and_stays_in_the_file(tmp_path: Path) -> None:
    other = plan(Drop(2))
    with open_run_folder(tmp_path, RECIPE) as run:
        run.note("calibration", Plan(), Reading(1.0, 0.1), by="old")
        run.note("calibration", other, Reading(2.0, 0.2), by="new")
        run.note("held out", Plan(), Reading(3.0, 0.3), by="old")
    before = (tmp_path / "journal.jsonl").read_text()
    for _ in range(2):
        with open_run_folder(tmp_path, RECIPE) as run:
            assert run.recall("calibration", lambda _plan: "new") == {other: Reading(2.0, 0.2)}
            assert run.recall("held out", lambda _plan: "old") == {Plan(): Reading(3.0, 0.3)}
    after = (tmp_path / "journal.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 4
    assert measured_in(tmp_path)["calibration"] == {other: Reading(2.0, 0.2)}


def test_what_is_measured_again_counts_though_its_plan_was_forgotten(tmp_path: Path) -> None:
    names = {"old": 1.0, "new": 2.0}
    for name, score in names.items():
        with open_run_folder(tmp_path, RECIPE) as run:
            assert run.recall("calibration", partial(_named, name)) == {}
            run.note("calibration", Plan(), Reading(score, 0.1), by=name)
    assert measured_in(tmp_path) == {"calibration": {Plan(): Reading(2.0, 0.1)}}


def _named(name: str, plan: Plan) -> str:
    del plan
    return name


def test_the_journal_is_on_the_disk_within_a_second_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, synced = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with open_run_folder(tmp_path, RECIPE) as run:
        monkeypatch.setattr(os, "fsync", lambda _descriptor: synced.append(now[0]))
        for now[0] in (0.5, 0.9, 1.2, 1.4, 2.4):
            run.note("calibration", Plan(), Reading(1.0, 0.1))
    assert synced == [1.2, 2.4, 2.4]


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


def test_a_run_that_left_nothing_gives_way_to_another_recipe(tmp_path: Path) -> None:
    begun = ("recipe.toml", "journal.jsonl", "environment.json", "state.json")
    assert known_in(tmp_path) == {}
    for name in begun[2:]:
        (tmp_path / name).write_text("{}")
    other = {**RECIPE, "seed": 7}
    assert known_in(tmp_path, other) == {}
    assert tomli.loads((tmp_path / "recipe.toml").read_text()) == other
    # What the other run spent is none of this one's.
    assert not (tmp_path / "state.json").exists()
    # Scores took time, and are kept for their own recipe.
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(PdtrimError, match="holds a run of another recipe, which differs in seed"):
        known_in(tmp_path)


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
    assert str(caught.value) == f"{file} is not a plan: it has no 'format'"


@pytest.mark.parametrize("name", ["plan.json", "outcome.json"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{\xff\xfe\x00")
    with pytest.raises(PdtrimError) as caught:
        load_plan(tmp_path) if name == "plan.json" else load_outcome(tmp_path)
    assert str(caught.value) == f"{tmp_path / name} is not text in UTF-8 (byte 1)"


@pytest.mark.parametrize("key", ["fidelity", "answer_tokens", "own_answers"])
def test_what_is_measured_at_the_end_alone_may_differ(key: str) -> None:
    before, now = {**RECIPE, "evaluation": {"threads": 1}}, {**RECIPE, "evaluation": {"threads": 1, key: 4}}
    assert changed_keys(before, now) == changed_keys(now, before) == []
    assert changed_keys(before, {**now, key: 4}) == [key]
    assert changed_keys(before, {**now, "evaluation": {"threads": 2, key: 4}}) == ["evaluation.threads"]
