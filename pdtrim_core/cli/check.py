"""`pdtrim-core check`: say whether recipes and sweeps can be carried out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pdtrim_core.errors import PdtrimError, RecipeError
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import load, parse_settings
from pdtrim_core.sweeping.sweep import Changes, is_sweep, read_sweep


def check(
    recipe: Annotated[list[Path], typer.Argument(help="Recipes or sweeps, TOML files.", show_default=False)],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipes.")] = None,
    budget: Annotated[bool, typer.Option("--budget", help="Also say how many blocks go; no weights are read.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Check recipes and sweeps without running them; report all their problems at once."""
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
        wanted = _read(path, settings)
        result: dict[str, Any] = {"recipe": str(path), "problems": [], "exit_code": 0}
        result["text"] = f"{path}: ok" if None in wanted else f"{path}: ok, {len(wanted)} run{'s' * (len(wanted) != 1)}"
        if budget:
            from pdtrim_core.pipeline.budget import budget_of  # noqa: PLC0415 - imports torch

            found = {name: budget_of(recipe, recipe.host) for name, recipe in wanted.items()}
            result["budget"] = vars(found[None]) if None in found else {name: vars(of_run) for name, of_run in found.items()}
            lines = [f"{path}: {of_run}" if name is None else f"{path}: {name}: {of_run}" for name, of_run in found.items()]
            result["text"] = "\n".join(lines)
    except PdtrimError as error:
        problems = list(error.problems) if isinstance(error, RecipeError) else [str(error)]
        return {"recipe": str(path), "problems": problems, "exit_code": error.exit_code, "text": _told(path, error)}
    return result


def _read(path: Path, settings: list[str]) -> dict[str | None, Recipe]:
    """Return the recipe in a file, under None, or those of a sweep's runs by name."""
    data = load(path)
    if is_sweep(data):
        return {run.point.name: run.recipe for run in read_sweep(path, changes=Changes(parse_settings(settings))).runs}
    return {None: Recipe.from_data(data, changes=parse_settings(settings), where=str(path))}


def _told(path: Path, error: PdtrimError) -> str:
    return str(error) if isinstance(error, RecipeError) else f"{path}: {error}"
