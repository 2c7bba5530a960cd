"""Texts of three kinds that benchmarks learn from and measure on: no text is both, and nothing is chosen on those that measure.

The kinds are what the dense model writes behind beginnings of prose, its greedy answers to the questions that ship, and running
text of a file, which is none of the repository's.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from pydantic import TypeAdapter

from pdtrim_core.api import Item, PdtrimError, Plan, python_reference, write_whole
from pdtrim_core.data.tokens import opening_of, tokens_of
from pdtrim_core.execution.sampling import sampled
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity.dense_answers import answers
from pdtrim_core.fidelity.inputs import spread
from pdtrim_core.model.block_model import BlockModel
from pdtrim_plugins.calibrations import Mini

PROMPT = ANSWER = 64
"""Tokens of a prompt, and of what follows it, at most."""
MEASURED = 64
"""Texts of a kind that measure, where a benchmark does not say how many."""
OPENING = 8
BEHIND = 32
"""Tokens behind the prompt of a window."""
LEAST_WORDS = 5
"""Words of a line that is no heading, table or code."""
KINDS = ("generated", "answers", "text")
WITHIN = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
DESCRIBED = (ast.Module, *WITHIN)
"""What has a docstring: a module, and what stands in it."""


class Texts(NamedTuple):
    """Texts by kind: those to learn from, and those to measure on."""

    learned: Mapping[str, Sequence[Item]]
    measured: Mapping[str, Sequence[Item]]


def kept_texts(file: Path | None, make: Callable[[], Texts]) -> Texts:
    """Return the texts of a file, or make them, and keep them there; without a file they are made."""
    if file is None or not file.is_file():
        made = make()
        if file is not None:
            write_whole(file, TypeAdapter(Texts).dump_json(made).decode())
        return made
    return TypeAdapter(Texts).validate_json(file.read_bytes())


def parted(text: Sequence[int], number: int, prompt: int) -> Item:
    """Return a text as a prompt and what follows it."""
    return Item((tuple(text[:prompt]),), (tuple(text[prompt:]),), 0, (1,), f"text {number}")


def written(model: BlockModel, count: int, *, seed: int, part: slice, questions: Sequence[str] = ()) -> list[tuple[int, ...]]:
    """Return texts that the model writes, from openings in one part of the prose of the Python reference, and to questions."""
    prose = python_reference()
    chosen = prose[part.start : part.stop]
    Random(seed).shuffle(chosen)
    opening = opening_of("text", model.tokenizer)
    tokens = [token for text in chosen for token in tokens_of(text, model.tokenizer)]
    openings = [(*opening, *tokens[OPENING * number : OPENING * (number + 1)]) for number in range(count)]
    for number in range(0, count, 2) if questions else ():
        openings[number] = (*opening, *tokens_of(questions[number // 2 % len(questions)], model.tokenizer)[-PROMPT:])
    return [
        text
        for start in range(0, count, MEASURED)
        for text in sampled(model, openings[start : start + MEASURED], PROMPT + ANSWER, seed=seed + start)
    ]


def answered(model: BlockModel, questions: Sequence[str]) -> list[Item]:
    """Return questions with the model's greedy answers to them, those that have some."""
    prompts = [(*opening_of(text, model.tokenizer), *tokens_of(text, model.tokenizer)) for text in questions]
    found = answers(TwoPhaseModel(model, Plan()), prompts, ANSWER)
    pairs = [(prompt, tuple(answer)) for prompt, answer in zip(prompts, found, strict=True) if answer]
    return [Item((prompt,), (answer,), 0, (1,), f"question {n}") for n, (prompt, answer) in enumerate(pairs)]


def running(model: BlockModel, path: Path, count: int, length: int = PROMPT + ANSWER) -> list[tuple[int, ...]]:
    """Return the beginning of a file in texts of one length."""
    characters = path.read_text(encoding="utf-8")[: 8 * count * length]
    tokens = tokens_of(characters, model.tokenizer)
    texts = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    if len(texts) < count:
        raise SystemExit(f"{path} has {len(texts)} texts of {length} tokens, and {count} are needed")
    return texts[:count]


def windows(tokens: Sequence[int], prompt: int, count: int) -> list[Item]:
    """Return windows of a text, evenly spaced: a prompt of so many tokens, and what follows it.

    Raises `PdtrimError` for a text that is shorter than a window.
    """
    window = prompt + BEHIND
    starts = range(0, len(tokens) - window + 1, window)
    if not starts:
        raise PdtrimError(f"the text has {len(tokens)} tokens, fewer than the {window} of one window: ask for shorter prompts")
    parts = [(tuple(tokens[at : at + prompt]), tuple(tokens[at + prompt : at + window])) for at in spread(starts, count)]
    return [Item((first,), (behind,), 0, (1,), f"window {number}") for number, (first, behind) in enumerate(parts)]


def library_prose(of: type[ast.AST] | tuple[type[ast.AST], ...] = ast.Module) -> str:
    """Return what the modules of Python's library say of themselves, or their classes and functions: text to measure on.

    None of it is in the reference.
    """
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, of) and isinstance(node, DESCRIBED):
                about = ast.get_docstring(node) or ""
                found += [line for line in about.splitlines() if line[:1].isalpha() and len(line.split()) > LEAST_WORDS]
    return "\n".join(found)


def learned_texts(model: BlockModel, tokens: int, file: Path | None = None, prompt: int = PROMPT) -> dict[str, list[Item]]:
    """Return so many tokens of each kind to learn from: what the model writes, and a file's running text if there is one.

    Their prompts have 2 tokens to so many; what follows is what decode learns from.
    """
    count, rng = -(-tokens // (PROMPT + ANSWER)), Random(0)
    half, questions = len(python_reference()) // 2, list(Mini().training_prompts(Random(0)))
    texts = {"generated": written(model, count, seed=0, part=slice(0, half), questions=questions)}
    if file is not None:
        texts["text"] = running(model, file, count)
    return {kind: [parted(text, n, rng.randint(2, prompt)) for n, text in enumerate(own)] for kind, own in texts.items()}


def measured_texts(model: BlockModel, count: int, file: Path | None = None) -> dict[str, list[Item]]:
    """Return so many texts of each kind to measure on; running text only where there is a file."""
    half = len(python_reference()) // 2
    texts = {"generated": written(model, count, seed=1_000_000, part=slice(half, None))}
    if file is not None:
        texts["text"] = running(model, file, count)
    questions = [sample.prompt for sample in Mini().draw_held_out(count, Random(0))]
    found = {kind: [parted(text, n, PROMPT) for n, text in enumerate(own)] for kind, own in texts.items()}
    return {**found, "answers": answered(model, questions)}
