"""Calibration sources: the items that ship with the package, JSONL files, plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from pdtrim_core.api import (
    CalibrationSource,
    PdtrimError,
    Sample,
    UnreadableError,
    hookimpl,
    parse_json,
    python_reference,
    read_lines,
    read_text,
    shown,
)

PIECE_WORDS = 64
"""Words of a piece of text, half of which are its prompt, unless a recipe says otherwise."""
MOST_PIECES = 1_000_000
"""Pieces that a text is cut into, at most."""


class Mini(CalibrationSource):
    """The items that ship with pdtrim-core: everyday physics and general knowledge, half of each."""

    name = "mini"

    samples: int = Field(128, gt=0, description="number of items to measure on, of 256: half, so that fresh ones are left")
    prose: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the items that are pieces of the Python reference's prose instead, since what is near to dense on "
        "questions may be far from it on running text. They have no wrong choices, which accuracy and margin need",
    )

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        """Return `count` items drawn with `rng`: of the 256, half from each part, and pieces of prose."""
        return self._mixed("calibration", count, rng, "samples")

    def draw_held_out(self, count: int, rng: Random) -> Iterable[Sample]:
        """Return `count` items of the 64 held-out ones and of other prose."""
        return self._mixed("evaluation", count, rng, "held_out")

    def _mixed(self, part: str, count: int, rng: Random, option: str) -> list[Sample]:
        pieces = round(self.prose * count)
        questions = _halves(_shipped(part), count - pieces, rng, option)
        if not pieces:
            return questions
        prose = _pieces("\n".join(python_reference()), PIECE_WORDS, "python-reference")
        prose = list({piece.content: piece for piece in prose}.values())
        # Every other piece is for those that are held out, so that no text is in both.
        prose = prose[1 if part == "evaluation" else 0 :: 2]
        if pieces > len(prose):
            raise PdtrimError(f"calibration.{option}: mini has {len(prose)} pieces of prose, not {pieces}")
        mixed = [*questions, *rng.sample(prose, pieces)]
        rng.shuffle(mixed)
        return mixed

    def training_prompts(self, rng: Random) -> Iterable[str]:
        """Return the questions of the 256 items, without their choices."""
        return _prompts(_shipped("calibration"), rng)


def _shipped(name: str) -> list[Sample]:
    path = resources.files("pdtrim_plugins") / "data" / "mini" / f"{name}.jsonl"
    return [
        _item(line, f"mini/{name}.jsonl, line {number}") for number, line in enumerate(path.read_bytes().splitlines(), start=1)
    ]


def _halves(samples: Sequence[Sample], count: int, rng: Random, option: str) -> list[Sample]:
    physics = [sample for sample in samples if sample.name.startswith("physics")]
    knowledge = [sample for sample in samples if not sample.name.startswith("physics")]
    if count > len(samples):
        raise PdtrimError(f"calibration.{option}: mini has {len(samples)} such items, not {count}")
    drawn = rng.sample(physics, count // 2) + rng.sample(knowledge, count - count // 2)
    rng.shuffle(drawn)
    return drawn


class Jsonl(CalibrationSource):
    """Items from JSONL files: one item a line with query, choices and gold (or contexts, continuation and gold)."""

    name = "jsonl"

    files: tuple[Path, ...] = Field(min_length=1, description="files to draw from, the same number of items from each")
    held_out_files: tuple[Path, ...] = Field(
        (), description="files of held-out items (default: items of `files` that were not drawn)"
    )
    training_files: tuple[Path, ...] = Field(
        (),
        description="files of items to train merges on; measured ones are left out (default: the Python reference's prose)",
    )

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        """Return `count` items, evenly over the files, drawn with `rng`."""
        return _spread([read_items(path) for path in self.files], count, rng)

    def draw_held_out(self, count: int, rng: Random) -> Iterable[Sample] | None:
        """Return items of the held-out files; None where there are none."""
        if not self.held_out_files:
            return None
        return _spread([read_items(path) for path in self.held_out_files], count, rng)

    def training_texts(self, rng: Random) -> Iterable[str]:
        """Return the training items, each with its right choice, evenly over the files."""
        if not self.training_files:
            return super().training_texts(rng)
        groups = [read_items(path) for path in self.training_files]
        return [_with_answer(sample) for sample in _spread(groups, sum(map(len, groups)), rng)]

    def training_prompts(self, rng: Random) -> Iterable[str]:
        """Return the prompts of the training items, without their choices."""
        return _prompts([sample for path in self.training_files for sample in read_items(path)], rng)


def _with_answer(sample: Sample) -> str:
    return _prompt_of(sample) + sample.choices[sample.answer]


def _prompt_of(sample: Sample) -> str:
    return sample.prompts[sample.answer] if sample.prompts else sample.prompt


def _prompts(samples: Sequence[Sample], rng: Random) -> list[str]:
    prompts = [_prompt_of(sample).rstrip() for sample in samples]
    rng.shuffle(prompts)
    return prompts


def _spread(groups: Sequence[list[Sample]], count: int, rng: Random) -> list[Sample]:
    for group in groups:
        rng.shuffle(group)
    # In turns, so that any prefix of the result is spread as evenly as the whole.
    longest = max(len(group) for group in groups)
    turns = [group[turn] for turn in range(longest) for group in groups if turn < len(group)]
    return turns[:count]


def read_items(path: Path) -> list[Sample]:
    """Return the items of a JSONL file. Raises a `PdtrimError` that names the file, the line and the problem."""
    try:
        items = [_item(line, f"{path}, line {number}") for number, line in read_lines(path) if line.strip()]
    except FileNotFoundError:
        raise PdtrimError(f"calibration file {path} does not exist") from None
    except UnreadableError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise PdtrimError(f"calibration file {path} is not text in UTF-8: {error.__cause__}") from None
        raise PdtrimError(f"calibration file {error}") from None
    if not items:
        raise PdtrimError(f"calibration file {path} is empty: it needs one item a line")
    return items


def _item(line: bytes, where: str) -> Sample:
    try:
        data = parse_json(line, where)
    except UnreadableError as error:
        if error.syntax:
            raise PdtrimError(f"{where}: not JSON ({error.reason})") from None
        raise
    if not isinstance(data, dict):
        raise PdtrimError(f"{where}: an item is an object with query, choices and gold")
    name = str(data.get("id", ""))
    if "contexts" in data:
        prompts, continuation = _texts(data, "contexts", where), _text(data, "continuation", where)
        gold = _gold(data, len(prompts), where)
        return Sample("", (" " + continuation,) * len(prompts), gold, name, prompts)
    query, choices = _text(data, "query", where), _texts(data, "choices", where)
    return Sample(query, tuple(" " + choice for choice in choices), _gold(data, len(choices), where), name)


def _text(data: dict[str, Any], key: str, where: str) -> str:
    value = _field(data, key, where)
    if not (isinstance(value, str) and value.strip()):
        raise PdtrimError(f"{where}: {key} must be a text that is not empty")
    return value


def _texts(data: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = _field(data, key, where)
    if not (isinstance(value, list) and value and all(isinstance(text, str) and text.strip() for text in value)):
        raise PdtrimError(f"{where}: {key} must be a list of texts that are not empty")
    return tuple(value)


def _gold(data: dict[str, Any], count: int, where: str) -> int:
    value = _field(data, "gold", where)
    if type(value) is not int or not 0 <= value < count:
        raise PdtrimError(f"{where}: gold must be the number of the right choice, 0 to {count - 1} (got {shown(value)})")
    return value


def _field(data: dict[str, Any], key: str, where: str) -> Any:
    if key not in data:
        raise PdtrimError(f"{where}: the key '{key}' is missing")
    return data[key]


class Text(CalibrationSource):
    """Plain text cut into pieces: prefill reads the first half of each, the second half is scored."""

    name = "text"

    files: tuple[Path, ...] = Field((), description="text files (default: the prose of the Python reference that CPython ships)")
    words: int = Field(PIECE_WORDS, ge=4, description="words in a piece")
    training_files: tuple[Path, ...] = Field(
        (),
        description="text files to train merges on; text that is measured on is left out (default: the Python reference's prose)",
    )

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        """Return `count` pieces, drawn with `rng`; no two overlap."""
        pieces = [piece for path, text in self._texts(self.files) for piece in _pieces(text, self.words, path)]
        if not pieces:
            names = ", ".join(map(str, self.files)) or "the prose of the Python reference"
            raise PdtrimError(f"calibration.words: there are no {self.words} words in {names}: ask for shorter pieces")
        # Repeated pieces, as in licences and headings, would count twice, and could be both searched on and held out.
        pieces = list({piece.content: piece for piece in pieces}.values())
        rng.shuffle(pieces)
        return pieces[:count]

    def training_texts(self, rng: Random) -> Iterable[str]:
        """Return the lines of the training files."""
        if not self.training_files:
            return super().training_texts(rng)
        lines = [line for _, text in self._texts(self.training_files) for line in text.splitlines() if line.strip()]
        rng.shuffle(lines)
        return lines

    def _texts(self, files: Sequence[Path]) -> Iterable[tuple[str, str]]:
        if not files:
            yield "python-reference", "\n".join(python_reference())
        for path in files:
            try:
                yield path.name, read_text(path)
            except (FileNotFoundError, UnreadableError) as error:
                raise PdtrimError(f"calibration file {path} cannot be read as text: {error}") from None


def _pieces(text: str, words: int, where: str) -> list[Sample]:
    # Word by word, for a list of them would take many times the memory of the text.
    rest = (found[0] for found in re.finditer(r"\S+", text))
    pieces: list[Sample] = []
    while len(piece := list(islice(rest, words))) == words:
        if len(pieces) == MOST_PIECES:
            raise PdtrimError(f"calibration.words: {where} has more than {MOST_PIECES:,} pieces of {words}: ask for longer ones")
        first, second = " ".join(piece[: words // 2]), " " + " ".join(piece[words // 2 :])
        pieces.append(Sample(first, (second,), name=f"{where}:{words * len(pieces)}"))
    return pieces


@hookimpl
def pdtrim_calibrations() -> Iterable[type[CalibrationSource]]:
    """Yield the calibration sources."""
    yield from (Mini, Jsonl, Text)
