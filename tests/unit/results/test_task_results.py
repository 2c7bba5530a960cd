"""Results of evaluations: the same settings find the same file, other settings another, and damage is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pdtrim_core.errors import PdtrimError
from pdtrim_core.results.task_results import ItemAnswer, Metric, TaskResult, find_result, path_of, results_in, write_result

SETTINGS = {"limit": 20, "plan": "ab12"}
RESULT = TaskResult(
    task="piqa",
    variant="staged",
    metrics={"acc": Metric(0.7, 0.02), "acc_norm": Metric(0.71)},
    main="acc_norm",
    answers=(ItemAnswer("0", {"acc": 1.0}, 0), ItemAnswer("1", {"acc": 0.0}, "text")),
    settings=SETTINGS,
    versions={"lm-eval": "0.4"},
    seconds=1.5,
    notes=("2 prompts were cut",),
)


def test_a_result_is_found_again_under_its_settings_and_no_others(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT)
    assert find_result(tmp_path, "piqa", "staged", dict(reversed(SETTINGS.items()))) == RESULT
    assert find_result(tmp_path, "piqa", "staged", {**SETTINGS, "limit": 21}) is None
    assert find_result(tmp_path, "piqa", "dense", SETTINGS) is None


def test_a_folder_gives_all_its_results(tmp_path: Path) -> None:
    others = [replace(RESULT, variant="dense"), replace(RESULT, task="boolq"), replace(RESULT, settings={"limit": 5})]
    for result in (RESULT, *others):
        write_result(tmp_path, result)
    assert sorted(results_in(tmp_path), key=repr) == sorted([RESULT, *others], key=repr)
    assert results_in(tmp_path / "nothing") == []


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 1, "task": 3}'])
def test_a_damaged_result_is_named(tmp_path: Path, text: str) -> None:
    path = write_result(tmp_path, RESULT)
    path.write_text(text)
    with pytest.raises(PdtrimError, match="is no result of an evaluation") as caught:
        results_in(tmp_path)
    assert str(path) in str(caught.value)


def test_another_format_is_named(tmp_path: Path) -> None:
    path = write_result(tmp_path, RESULT)
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(PdtrimError, match="has evaluation format 3, this version reads 2"):
        find_result(tmp_path, "piqa", "staged", SETTINGS)
    assert path == path_of(tmp_path, "piqa", "staged", SETTINGS)


def test_an_answer_with_a_character_that_no_file_holds_can_be_read_again(tmp_path: Path) -> None:
    answer = ItemAnswer("a", {}, "one\0two")
    write_result(tmp_path, replace(RESULT, answers=(answer,)))
    (found,) = results_in(tmp_path)
    assert found.answers == (answer,)
    assert answer.answer == "one\ufffdtwo"


def test_a_task_with_a_colon_has_a_file_that_every_system_can_have(tmp_path: Path) -> None:
    result = replace(RESULT, task="fidelity:piqa")
    path = write_result(tmp_path, result)
    assert ":" not in path.name
    assert find_result(tmp_path, "fidelity:piqa", result.variant, result.settings) == result
