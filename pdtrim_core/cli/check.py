"""`pdtrim-core check`: say whether recipes and sweeps can be carried out."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdtrim_core.cli.completing import complete_settings
from pdtrim_core.cli.options import Trust
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.errors import PdtrimError, PluginError, RecipeError, blame
from pdtrim_core.pipeline.export import export_problems, facts_of, make_exporters
from pdtrim_core.recipe.missing import missing
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import load, parse_settings
from pdtrim_core.serving.commands import SERVED
from pdtrim_core.sweeping.sweep import DATA, Changes, Sweep, is_sweep, read_sweep

if TYPE_CHECKING:
    from pdtrim_core.pipeline.budget import Budget


def check(
    recipe: Annotated[list[Path], typer.Argument(help="Recipes or sweeps, TOML files.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", autocompletion=complete_settings, help="Change a key of the recipes."),
    ] = None,
    budget: Annotated[bool, typer.Option("--budget", help="Also say how much goes; no weights are read.")] = False,
    wanted: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="NAME", help="Also say whether an exporter, or serve, could take it; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Check recipes and sweeps without running them; report all their problems at once."""
    del debug  # main() reads it
    names = [SERVED if name == "serve" else name for name in wanted or ()]
    results = [_check(path, settings or [], names, budget=budget, trust=trust) for path in recipe]
    if as_json:
        say_data(json.dumps(results, indent=1))
    for result in results if not as_json else []:
        say(result["text"])
    codes = [result["exit_code"] for result in results]
    if any(codes):
        raise typer.Exit(max(codes))


def _check(path: Path, settings: list[str], names: list[str], *, budget: bool, trust: bool) -> dict[str, Any]:
    try:
        wanted = _read(path, settings, trust=trust)
        result: dict[str, Any] = {"recipe": str(path), "problems": [], "exit_code": 0}
        result["text"] = f"{path}: ok" if None in wanted else f"{path}: ok, {len(wanted)} run{'s' * (len(wanted) != 1)}"
        _check_there(path, wanted)
        unknown = _check_exports(path, wanted, names, opens=budget or bool(names))
        if unknown:
            result["unknown"] = unknown
            result["text"] += f"; whether it can be exported is not known: {unknown}"
        for recipe in () if budget else wanted.values():
            if _asks_too_much(recipe) or _is_odd(recipe) or (_depends_on_sizes(recipe) and _is_near(recipe)):
                # How much of a model a block holds stands in its config, which takes seconds to open.
                _budget_of(recipe)
        if budget:
            found = {name: _budget_of(recipe) for name, recipe in wanted.items()}
            result["budget"] = asdict(found[None]) if None in found else {name: asdict(of_run) for name, of_run in found.items()}
            result["text"] = "\n".join(
                f"{path}: {line}" if name is None else f"{path}: {name}: {line}"
                for name, of_run in found.items()
                for line in (of_run, *of_run.remarks)
            )
        # What is common to the runs of a sweep serves those that have a use for it.
        result["unused"] = [line for line in next(iter(wanted.values())).unused if all(line in r.unused for r in wanted.values())]
        result["text"] += "".join(f"\n{path}: {line}" for line in result["unused"])
        result["not_run"] = sorted({str(file) for recipe in wanted.values() for file in recipe.host.not_run})
        if result["not_run"]:
            result["text"] += f"\n{path}: {' and '.join(result['not_run'])} not run: say --trust if you trust it"
    except PdtrimError as error:
        problems = list(error.problems) if isinstance(error, RecipeError) else [str(error)]
        return {"recipe": str(path), "problems": problems, "exit_code": error.exit_code, "text": _told(path, error)}
    return result


def _check_there(path: Path, recipes: Mapping[str | None, Recipe]) -> None:
    """Raise `RecipeError` with all files and folders that recipes name and that are not there."""
    found = [f"{run}: {problem}" if run else problem for run, recipe in recipes.items() for problem in missing(recipe)]
    if found:
        raise RecipeError(str(path), found)


def _asks_too_much(recipe: Recipe) -> bool:
    """Tell whether a recipe takes as many blocks as the files of its model say that there are, or more."""
    wanted = recipe.settings.prune.blocks
    if wanted is None:
        return False
    with blame(recipe.host.label_of(recipe.model)):
        there = recipe.model.block_count()
    return there is not None and wanted >= there


def _is_odd(recipe: Recipe) -> bool:
    with blame(recipe.host.label_of(recipe.model)):
        return recipe.model.is_odd()


def _depends_on_sizes(recipe: Recipe) -> bool:
    """Tell whether the sizes of a model decide if a recipe can be carried out: a share of it, and groups of weights."""
    return recipe.settings.prune.fraction is not None or (recipe.quantizer is not None and bool(recipe.quantizer.formats))


def _is_near(recipe: Recipe) -> bool:
    """Tell whether the files of a recipe's model are on this machine, so that its config can be read at once."""
    with blame(recipe.host.label_of(recipe.model)):
        return bool(recipe.model.files())


def _check_exports(path: Path, recipes: Mapping[str | None, Recipe], names: Sequence[str], *, opens: bool) -> str:
    """Ask the exporters of recipes, and others by name, whether they could write; raise `RecipeError` with all that they say.

    Unless `opens`, a config that cannot be opened is no error, and the reason is returned: the model may be elsewhere.
    """
    found: dict[str, None] = {}
    unknown, configs = "", dict[str, Any]()
    for run, recipe in recipes.items():
        own = {exporter.name for exporter in recipe.exporters}
        others = make_exporters([name for name in dict.fromkeys(names) if name not in own], {}, recipe.host)
        try:
            problems = export_problems((*recipe.exporters, *others), recipe.host, facts_of(recipe, configs=configs))
        except PluginError:
            raise
        except PdtrimError as error:
            if opens:
                raise
            unknown, problems = str(error), []
        found |= dict.fromkeys(problem if run is None else f"{run}: {problem}" for problem in problems)
    if found:
        raise RecipeError(str(path), list(found))
    return unknown


def _budget_of(recipe: Recipe) -> Budget:
    from pdtrim_core.pipeline.budget import budget_of  # noqa: PLC0415 - imports torch

    return budget_of(recipe, recipe.host)


def _read(path: Path, settings: list[str], *, trust: bool) -> dict[str | None, Recipe]:
    """Return the recipe in a file, under None, or those of a sweep's runs by name."""
    data = load(path)
    if is_sweep(data):
        sweep = read_sweep(path, changes=Changes(parse_settings(settings)), trust=trust)
        _check_tasks(path, sweep)
        return {run.point.name: run.recipe for run in sweep.runs}
    return {None: Recipe.from_data(data, changes=parse_settings(settings), where=str(path), trust=trust)}


def _check_tasks(path: Path, sweep: Sweep) -> None:
    """Raise `RecipeError` for benchmarks of a sweep that do not exist, as far as the harness is here to tell."""
    if sweep.evaluate is None or importlib.util.find_spec("lm_eval") is None:
        return
    from pdtrim_core.sweeping import evaluating  # noqa: PLC0415 - imports torch

    try:
        evaluating.check(sweep.evaluate, runs_code=True, files=DATA not in sweep.evaluate.data)
    except PdtrimError as error:
        raise RecipeError(str(path), [f"evaluate.tasks: {error}"]) from None


def _told(path: Path, error: PdtrimError) -> str:
    return str(error) if isinstance(error, RecipeError) else f"{path}: {error}"
