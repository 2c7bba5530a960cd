"""`pdtrim-core check`: say whether recipes can be carried out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pdtrim_core import recipe as recipes
from pdtrim_core.errors import PdtrimError, RecipeError
from pdtrim_core.plugins import load_plugins


def check(
    recipe: Annotated[list[Path], typer.Argument(help="Recipes, TOML files.", show_default=False)],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipes.")] = None,
    budget: Annotated[bool, typer.Option("--budget", help="Also say how many blocks go, from the model's config alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Check recipes without running them; report all their problems at once."""
    del debug  # main() reads it
    results = [_check(path, settings or [], budget=budget) for path in recipe]
    if as_json:
        print(json.dumps(results, indent=1))
    for result in results if not as_json else []:
        print(result["text"])
    codes = [result["exit_code"] for result in results]
    if any(codes):
        raise typer.Exit(max(codes))


def _check(path: Path, settings: list[str], *, budget: bool) -> dict[str, Any]:
    try:
        host = load_plugins(recipes.plugin_files(recipes.load(path), path))
        recipe = recipes.read(path, host, settings=settings)
        text = f"{path}: ok"
        result: dict[str, Any] = {"recipe": str(path), "problems": [], "exit_code": 0}
        if budget:
            from pdtrim_core.budget import budget_of  # noqa: PLC0415 - imports torch

            found = budget_of(recipe, host)
            result["budget"] = vars(found)
            text = f"{path}: {found}"
    except PdtrimError as error:
        problems = list(error.problems) if isinstance(error, RecipeError) else [str(error)]
        return {"recipe": str(path), "problems": problems, "exit_code": error.exit_code, "text": _told(path, error)}
    return {**result, "text": text}


def _told(path: Path, error: PdtrimError) -> str:
    return str(error) if isinstance(error, RecipeError) else f"{path}: {error}"
