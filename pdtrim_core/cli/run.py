"""`pdtrim-core run`: carry out a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pdtrim_core.cli import reporting
from pdtrim_core.cli.completing import complete_settings
from pdtrim_core.cli.executing import Executed, check_executor, executed_by
from pdtrim_core.cli.options import Address, ExecutedBy, Log, Quiet, Trust, Workers
from pdtrim_core.cli.progress import Display, progress_display
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.errors import RecipeError
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline.kept_outcome import kept_outcome
from pdtrim_core.recipe.missing import check_there
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import load, parse_settings
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.sweeping.sweep import is_sweep


def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", autocompletion=complete_settings, help="Change a key of the recipe; may be repeated."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder, instead of the recipe's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and say what would run.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on with what the folder has.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    executor: ExecutedBy = "local",
    workers: Workers = None,
    address: Address = None,
    log: Log = "text",
    quiet: Quiet = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Carry out a recipe; go on where an interrupted run of it stopped. A finished one is printed again."""
    del debug  # main() reads it
    data = load(recipe)
    if is_sweep(data):
        raise RecipeError(str(recipe), ["this is a sweep, a table of runs: carry it out with pdtrim-core sweep"])
    wanted = Recipe.from_data(
        data, changes=parse_settings(settings or ()), where=str(recipe), out=out, trust=trust or not dry_run
    )
    display = progress_display(sys.stderr, log, quiet=quiet)
    by = Executed(executor, workers, address)
    carry_out(wanted, str(recipe), display, by, dry_run=dry_run, fresh=fresh, as_json=as_json)


def carry_out(recipe: Recipe, where: str, display: Display, by: Executed, *, dry_run: bool, fresh: bool, as_json: bool) -> None:
    """Run a recipe, while a display shows how far it is, and print what came out; or only say what would run.

    `where` names the recipe in errors.
    """
    check_executor(by)
    if dry_run:
        say_data(reporting.as_toml(recipe))
        return
    for line in recipe.unused:
        display.say(f"note: {line}")
    check_there(recipe, where)
    kept = None if fresh else kept_outcome(recipe)
    if kept is not None:
        display.say(f"note: {recipe.out} is finished, and nothing has changed since: this is what it has (--fresh runs it anew)")
        _say_kept(recipe, kept, as_json=as_json)
        return
    recipe.host.register(display, Origin("progress", "pdtrim-core"))
    from pdtrim_core.pipeline.pipeline import run as run_pipeline  # noqa: PLC0415 - imports torch

    with executed_by(by, display) as executor:
        outcome = run_pipeline(recipe, fresh=fresh, executor=executor)
    if as_json:
        say_data(outcome.to_json(), end="")
        return
    for text in reporting.reports(recipe.reports, recipe.host, outcome, recipe.out):
        say(text)


def _say_kept(wanted: Recipe, outcome: Outcome, *, as_json: bool) -> None:
    """Print what a finished run has; nothing in its folder changes."""
    if as_json:
        say_data(outcome.to_json(), end="")
        return
    for text in reporting.reports_again(wanted.reports, wanted.host, outcome, wanted.out):
        say(text)
