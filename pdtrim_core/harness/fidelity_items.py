"""Items of benchmarks from a folder of files, for figures of fidelity; lm-evaluation-harness is not needed for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdtrim_core.data.items import Item, Sample, encode
from pdtrim_core.errors import PdtrimError, did_you_mean
from pdtrim_core.fidelity.inputs import ITEMS, Inputs, read_whole_text, text_inputs
from pdtrim_core.harness import data_files
from pdtrim_core.harness.data_files import Doc
from pdtrim_core.harness.tasks import CHOICES

NAMES = (*CHOICES, "wikitext")
"""Benchmarks whose items have a right continuation."""


def tasks_in(data: Path, names: Sequence[str]) -> list[str]:
    """Return the benchmarks that were named, or all in a folder. Raises `PdtrimError` for others, and where there is none."""
    for name in names:
        if name not in NAMES:
            raise PdtrimError(
                f"--fidelity takes no items from '{name}'{did_you_mean(name, NAMES)} Right continuations have {', '.join(NAMES)}"
            )
        data_files.test_file(data, name)
    found = list(dict.fromkeys(names)) or [name for name in NAMES if _has(data, name)]
    if not found:
        raise PdtrimError(f"{data} has no benchmark for --fidelity: it takes folders such as piqa with a file test.jsonl")
    return found


def _has(data: Path, name: str) -> bool:
    if not data.is_dir():
        data_files.test_file(data, name)  # says so
    return (data / data_files.FOLDERS.get(name, name) / ("test.txt" if name == "wikitext" else "test.jsonl")).is_file()


def benchmark_inputs(data: Path, task: str, tokenizer: Any, *, share: float, count: int = ITEMS) -> Inputs:
    """Return items of a benchmark, evenly spaced over its file; of running text windows, of which `share` is prompt."""
    path = data_files.test_file(data, task)
    if task == "wikitext":
        return text_inputs(read_whole_text(path), task, tokenizer, share=share, count=count)
    docs = data_files.spread(data_files.read_docs(path, task), count)
    items = tuple(_item(doc, f"{task} {doc.get('id', number)}", tokenizer) for number, doc in enumerate(docs))
    return Inputs(task, items, {"benchmark": task})


def _item(doc: Doc, name: str, tokenizer: Any) -> Item:
    if "contexts" in doc:
        prompts = tuple(doc["contexts"])
        return encode(Sample("", (f" {doc['continuation']}",) * len(prompts), doc["gold"], name, prompts), tokenizer)
    return encode(Sample(doc["query"], tuple(f" {choice}" for choice in doc["choices"]), doc["gold"], name), tokenizer)
