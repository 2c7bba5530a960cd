"""Benchmark items from files: every form is read, and the first line that is none is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PdtrimError
from pdtrim_core.harness import data_files

CHOICE: dict[str, Any] = {"id": "a/0", "query": "Question: two?\nAnswer:", "choices": ["one", "two"], "gold": 1}
FORMS: dict[str, dict[str, Any]] = {
    "piqa": CHOICE,
    "winogrande": {"contexts": ["the cat", "the dog"], "continuation": "barks.", "gold": 1},
    "humaneval": {"task_id": "H/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass"},
    "ifeval": {"key": 1, "prompt": "Be brief.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
}


def written(folder: Path, task: str, *lines: object) -> Path:
    path = folder / task / "test.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


@pytest.mark.parametrize("task", FORMS)
def test_each_form_is_read_and_blank_lines_are_none(task: str, tmp_path: Path) -> None:
    path = written(tmp_path, task, FORMS[task], "", FORMS[task])
    assert data_files.read_docs(path, task) == [FORMS[task]] * 2


@pytest.mark.parametrize(
    ("task", "change", "problem"),
    [
        ("piqa", {"choices": ["one", " "]}, "number 1 of choices is empty"),
        ("piqa", {"choices": ["one"]}, "choices is a list of at least 2 texts"),
        ("piqa", {"gold": 2}, "gold is the number of the right one of the 2 choices, from 0 on; it is 2"),
        ("piqa", {"gold": True}, "gold is the number of the right one of the 2 choices, from 0 on; it is True"),
        ("piqa", {"query": ""}, "query is a text that is not empty"),
        ("winogrande", {"contexts": None}, "contexts is a list of at least 2 texts"),
        ("humaneval", {"test": 3}, "test is a text that is not empty"),
        ("ifeval", {"kwargs": []}, "kwargs is a list with one object an instruction"),
        ("ifeval", {"kwargs": [3]}, "kwargs is a list of objects"),
        ("ifeval", {"instruction_id_list": []}, "instruction_id_list is a list of at least 1 text"),
    ],
)
def test_an_item_that_cannot_be_used_is_named(task: str, change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = written(tmp_path, task, FORMS[task], {**FORMS[task], **change})
    with pytest.raises(PdtrimError) as told:
        data_files.read_docs(path, task)
    assert str(told.value) == f"{path}, line 2: {problem}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"query": "torn', "line 2 is not JSON: Unterminated string starting at: line 1 column 11 (char 10)"),
        ("[1]", "line 2: an item is an object with keys, not list"),
        ('{"query": "q"}', "line 2: the key 'choices' is missing"),
    ],
)
def test_a_broken_line_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = written(tmp_path, "piqa", CHOICE, line)
    with pytest.raises(PdtrimError) as told:
        data_files.read_docs(path, "piqa")
    assert str(told.value) == f"{path}, {problem}"


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    item = {**CHOICE, "query": "one\u2028two"}
    path.write_text(json.dumps(item, ensure_ascii=False), encoding="utf-8")
    assert data_files.read_docs(path, "piqa") == [item]


def test_files_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "piqa", "")
    with pytest.raises(PdtrimError, match="has no items"):
        data_files.read_docs(path, "piqa")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PdtrimError, match=r"is not text in UTF-8 \(byte 0\)"):
        data_files.read_docs(path, "piqa")


def test_a_missing_file_and_a_missing_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError, match="piqa is read from there; leave out --data to take it from the hub"):
        data_files.test_file(tmp_path, "piqa")
    with pytest.raises(PdtrimError, match="is not a folder: --data takes one with a folder for each benchmark"):
        data_files.test_file(tmp_path / "none", "piqa")


def test_shots_never_come_from_the_test_file(tmp_path: Path) -> None:
    written(tmp_path, "piqa", CHOICE)
    with pytest.raises(PdtrimError, match=r"has none of dev.jsonl, train.jsonl.* leave out --num-fewshot"):
        data_files.shots_file(tmp_path, "piqa")
    (tmp_path / "piqa" / "calib.jsonl").touch()
    assert data_files.shots_file(tmp_path, "piqa").name == "calib.jsonl"
    (tmp_path / "piqa" / "dev.jsonl").touch()
    assert data_files.shots_file(tmp_path, "piqa").name == "dev.jsonl"


def test_wikitext_is_cut_at_the_titles_of_articles(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text(" \n = One = \n \n Text . \n = = Part = = \n More . \n = Two = \n \n End . \n")
    pages = [doc["page"] for doc in data_files.read_docs(path, "wikitext")]
    assert pages == [" \n = One = \n \n Text . \n = = Part = = \n More . ", " = Two = \n \n End . \n"]


def test_items_are_spread_over_the_file() -> None:
    docs = [{"id": number} for number in range(10)]
    assert [doc["id"] for doc in data_files.spread(docs, 4)] == [0, 2, 5, 7]
    assert data_files.spread(docs, 10) == data_files.spread(docs, None) == data_files.spread(docs, 99) == docs
