"""Benchmark items from a folder of files, checked line by line.

A folder a benchmark with `test.jsonl`, one item a line: `query`, `choices` and `gold` (the number of the right choice), and
`subject` where there are several; or `contexts`, `continuation` and `gold`; or what HumanEval and IFEval themselves have.
WikiText is plain text, `wikitext2/test.txt`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.reading import LINE_BYTES, UnreadableError, open_regular, parse_json, read_lines, read_text
from pdtrim_core.wording import shown

Doc = dict[str, Any]
SHOTS_FROM = ("dev.jsonl", "train.jsonl", "train32.jsonl", "calib.jsonl", "val.jsonl")
"""Files of a benchmark that few-shot examples may come from; the first that is there."""
FOLDERS = {"wikitext": "wikitext2"}
"""Benchmarks whose folder has another name than the harness' task."""


def test_file(data: Path, task: str) -> Path:
    """Return the file to evaluate on. Raises `PdtrimError` where it is missing."""
    if not data.is_dir():
        raise PdtrimError(f"{data} is not a folder: --data takes one with a folder for each benchmark")
    path = data / FOLDERS.get(task, task) / ("test.txt" if task == "wikitext" else "test.jsonl")
    if not path.is_file():
        raise PdtrimError(f"{path} does not exist: {task} is read from there; leave out --data to take it from the hub")
    return path


def shots_file(data: Path, task: str) -> Path:
    """Return the file that few-shot examples come from. Raises `PdtrimError` where there is none."""
    folder = data / FOLDERS.get(task, task)
    for name in SHOTS_FROM:
        if (folder / name).is_file():
            return folder / name
    raise PdtrimError(
        f"{folder} has none of {', '.join(SHOTS_FROM)}, so there are no few-shot examples for {task}: leave out --num-fewshot"
    )


def digest_of(path: Path) -> str:
    """Return a hash of a file's content."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_docs(path: Path, task: str) -> list[Doc]:
    """Return the items of a file. Raises `PdtrimError` naming the file and the line of the first that is none."""
    try:
        return _docs(path, task)
    except FileNotFoundError:
        raise PdtrimError(f"{path} does not exist") from None


def _docs(path: Path, task: str) -> list[Doc]:
    if task == "wikitext":
        return [{"id": f"wikitext/{number}", "page": page} for number, page in enumerate(_pages(read_text(path)))]
    check = _CHECKS.get(task, _check_choices)
    docs = []
    for number, line in read_lines(path):
        if line.strip():
            docs.append(_doc(line, check, f"{path}, line {number}"))
    if not docs:
        raise PdtrimError(f"{path} has no items")
    return docs


def spread(docs: Sequence[Doc], count: int | None) -> list[Doc]:
    """Return at most so many items, evenly spaced, so that all parts of a file have their share."""
    if count is None or count >= len(docs):
        return list(docs)
    return [docs[number * len(docs) // count] for number in range(count)]


def _doc(line: bytes, check: Callable[[Mapping[str, Any]], Iterator[str]], where: str) -> Doc:
    try:
        data = parse_json(line, where, LINE_BYTES)
    except UnreadableError as error:
        if error.syntax:
            raise PdtrimError(f"{where} is not JSON: {error.reason}") from None
        raise
    if not isinstance(data, dict):
        raise PdtrimError(f"{where}: an item is an object with keys, not {type(data).__name__}")
    problem = next(check(data), None)
    if problem is not None:
        raise PdtrimError(f"{where}: {problem}")
    return data


def _check_choices(data: Mapping[str, Any]) -> Iterator[str]:
    yield from _texts(data, "query")
    yield from _options(data, "choices", least=2)
    yield from _gold(data, "choices")


def _check_contexts(data: Mapping[str, Any]) -> Iterator[str]:
    yield from _options(data, "contexts", least=2)
    yield from _texts(data, "continuation")
    yield from _gold(data, "contexts")


def _check_humaneval(data: Mapping[str, Any]) -> Iterator[str]:
    yield from _texts(data, "task_id", "prompt", "entry_point", "test")


def _check_ifeval(data: Mapping[str, Any]) -> Iterator[str]:
    yield from _texts(data, "prompt")
    yield from _options(data, "instruction_id_list", least=1)
    kwargs = data.get("kwargs")
    if not isinstance(kwargs, list) or len(kwargs) != len(data["instruction_id_list"]):
        yield "kwargs is a list with one object an instruction"
    elif not all(isinstance(one, dict) for one in kwargs):
        yield "kwargs is a list of objects"


_CHECKS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "winogrande": _check_contexts,
    "humaneval": _check_humaneval,
    "ifeval": _check_ifeval,
}


def _texts(data: Mapping[str, Any], *keys: str) -> Iterator[str]:
    for key in keys:
        if key not in data:
            yield f"the key '{key}' is missing"
        elif not isinstance(data[key], str) or not data[key].strip():
            yield f"{key} is a text that is not empty"


def _options(data: Mapping[str, Any], key: str, *, least: int) -> Iterator[str]:
    if key not in data:
        yield f"the key '{key}' is missing"
    elif not isinstance(data[key], list) or len(data[key]) < least:
        yield f"{key} is a list of at least {least} text{'s' * (least > 1)}"
    else:
        for number, option in enumerate(data[key]):
            if not isinstance(option, str) or not option.strip():
                yield f"number {number} of {key} is empty"


def _gold(data: Mapping[str, Any], key: str) -> Iterator[str]:
    gold = data.get("gold")
    if type(gold) is not int or not 0 <= gold < len(data[key]):
        yield f"gold is the number of the right one of the {len(data[key])} {key}, from 0 on; it is {shown(gold)}"


def _pages(text: str) -> Iterator[str]:
    """Yield the articles of WikiText, each from its title to the line in front of the next one's."""
    page: list[str] = []
    for line in text.split("\n"):
        if re.fullmatch(r" = (?!=).*(?<!=) = ?", line) and any(part.strip() for part in page):
            yield "\n".join(page)
            page = []
        page.append(line)
    yield "\n".join(page)
