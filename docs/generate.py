# ruff: noqa: INP001 - a script beside the pages
"""Write the generated pages, and the tables in others: `python docs/generate.py`, or `--check` to compare.

The tables are those of components in README.md, and those of results in explanation/, made from results/*.json and
benchmarks/results/*.json. The modules of `generator` have what is written, one for each sort of page.

Only what pdtrim-core itself provides gets into the pages, whatever other plugins are installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from generator.benchmarks import benchmarks_page
from generator.code import hooks_page, plugin_page, python_page
from generator.components import kind_page, readme
from generator.families import families_page
from generator.measured import results
from generator.recipes import command_line_page, recipe_page, sweep_page

from pdtrim_core import load_plugins
from pdtrim_core.api.kinds import KINDS

FOLDER = Path(__file__).parent / "reference"
README = Path(__file__).parents[1] / "README.md"
WITH_RESULTS = [
    Path(__file__).parent / "explanation" / name
    for name in ("paper.md", "joint-search.md", "formats.md", "kv-selection.md", "why-stages-differ.md")
]
MARK = "<!-- Made by docs/generate.py from the package: do not edit. -->"
WIDTH = "100"


def pages() -> dict[str, str]:
    """Return every generated page by its file name."""
    host = load_plugins()
    found = {f"{kind}.md": kind_page(kind, host) for kind in KINDS}
    found["hooks.md"] = hooks_page()
    found["recipe.md"] = recipe_page()
    found["sweep.md"] = sweep_page()
    found["command-line.md"] = command_line_page()
    found["python-api.md"] = python_page()
    found["plugin-api.md"] = plugin_page()
    found["families.md"] = families_page()
    found["benchmarks.md"] = benchmarks_page()
    return {name: f"{MARK}\n\n{text.strip()}\n" for name, text in found.items()}


def differences(made: Mapping[str, str]) -> list[str]:
    """Return the pages that are missing, differ from what the package says, or are left over from an earlier one."""
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    left_over = [name for name, text in there.items() if text.startswith(MARK) and name not in made]
    return sorted([name for name, text in made.items() if there.get(name) != text] + left_over)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or compare them; return the exit code."""
    if list(arguments) not in ([], ["--check"]):
        print("usage: python docs/generate.py [--check]", file=sys.stderr)  # noqa: T201 - a script talks to its user
        return 2
    os.environ.update(COLUMNS=WIDTH, TERMINAL_WIDTH=WIDTH, NO_COLOR="1")
    host, made = load_plugins(), pages()
    partly = {README: lambda text: readme(text, host), **dict.fromkeys(WITH_RESULTS, results)}
    old = {path: path.read_text(encoding="utf-8") for path in partly}
    new = {path: write(old[path]) for path, write in partly.items()}
    changed = differences(made)
    outdated = [path for path in partly if old[path] != new[path]]
    for name in [f"docs/reference/{name}" for name in changed] + [str(path.relative_to(README.parent)) for path in outdated]:
        print(name)  # noqa: T201 - a script talks to its user
    if arguments:
        if changed or outdated:
            print("out of date: run python docs/generate.py", file=sys.stderr)  # noqa: T201 - a script talks to its user
        return int(bool(changed or outdated))
    for path in outdated:
        path.write_text(new[path], encoding="utf-8")
    FOLDER.mkdir(exist_ok=True)
    for name in changed:
        if name in made:
            (FOLDER / name).write_text(made[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
