"""`pdtrim-core sweep`: carry out a table of runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pdtrim_core.cli.completing import complete_settings
from pdtrim_core.cli.executing import Executed, check_executor, executed_by
from pdtrim_core.cli.options import Address, ExecutedBy, Log, Quiet, Trust, Workers
from pdtrim_core.cli.progress import Display, progress_display
from pdtrim_core.cli.terminal import print_table, say, say_data
from pdtrim_core.errors import PdtrimError, RecipeError
from pdtrim_core.host.host import Origin
from pdtrim_core.recipe.toml_data import load, parse_settings
from pdtrim_core.sweeping.sweep import Changes, Sweep, is_sweep, read_sweep
from pdtrim_core.sweeping.table import table_of

if TYPE_CHECKING:
    from pdtrim_core.comparing.compare import Comparison
    from pdtrim_core.results.task_results import Variant
    from pdtrim_core.sweeping.one_run import Ended


def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep, a TOML file.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", autocompletion=complete_settings, help="Change a key of all runs; may be repeated."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder that ${data} stands for.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the sweep, instead of the file's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all runs and list them.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on with what the folders have.")] = False,
    unsafe_code: Annotated[
        bool, typer.Option("--confirm-run-unsafe-code", help="Allow benchmarks that run programs which a model wrote.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    executor: ExecutedBy = "local",
    workers: Workers = None,
    address: Address = None,
    log: Log = "text",
    quiet: Quiet = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Carry out a table of runs; do what is not done yet, and print one table."""
    given = load(file)
    if not is_sweep(given):
        raise RecipeError(str(file), ["the key sweep = 1 is missing: a recipe is carried out by pdtrim-core run"])
    changes = Changes(parse_settings(settings or ()), out, data, unsafe_code)
    wanted = read_sweep(file, changes=changes, need_data=not dry_run, trust=trust or not dry_run)
    by = Executed(executor, workers, address)
    check_executor(by)
    if dry_run:
        _print_plan(wanted, as_json=as_json)
        return
    display = progress_display(sys.stderr, log, quiet=quiet)
    ended = _carry_out(wanted, display, by, fresh=fresh, debug=debug)
    _print_results(wanted, ended, as_json=as_json)
    failed = [end for end in ended if end.problem]
    if failed:
        causes = "".join(f"\n  {end.run.point.name}: {end.problem}" for end in failed)
        raise PdtrimError(f"{len(failed)} of {len(ended)} runs failed; mend this and run the same command again{causes}")


def _carry_out(wanted: Sweep, display: Display, by: Executed, *, fresh: bool, debug: bool) -> list[Ended]:
    from pdtrim_core.sweeping.running import Begins, carry_out  # noqa: PLC0415 - imports torch

    wanted.host.register(display, Origin("progress", "pdtrim-core"))
    if not sys.stderr.isatty():
        # Where benchmarks are to run: their harness draws bars even without a terminal.
        os.environ.setdefault("TQDM_DISABLE", "1")
    ended: list[Ended] = []
    with executed_by(by, display) as executor, display.working():
        for event in carry_out(wanted, fresh=fresh, say=display.say, executor=executor):
            if isinstance(event, Begins):
                display.say(f"[{event.number}/{event.count}] {event.run.point.name}")
                continue
            ended.append(event)
            if event.problem:
                display.say(event.traceback if debug else f"failed: {event.problem}")
    return ended


def _print_plan(wanted: Sweep, *, as_json: bool) -> None:
    if as_json:
        say_data(json.dumps([{"run": run.point.name, "recipe": run.recipe.to_data()} for run in wanted.runs], indent=1))
        return
    for run in wanted.runs:
        say(run.recipe.out)


def _print_results(wanted: Sweep, ended: Sequence[Ended], *, as_json: bool) -> None:
    from pdtrim_core.sweeping.running import results  # noqa: PLC0415 - imports torch

    found, comparisons = results(wanted, ended), _comparisons(wanted, ended)
    if as_json:
        tables = {"comparisons": [one.to_data() for one in comparisons]} if wanted.evaluate else {}
        say_data(json.dumps({**found, **tables}, indent=1))
    elif comparisons:
        _print_comparisons(found["about"], comparisons)
    else:
        _print_table(found)


def _comparisons(wanted: Sweep, ended: Sequence[Ended]) -> list[Comparison]:
    """Return the evaluated runs side by side, a table a model; none where nothing was evaluated."""
    if wanted.evaluate is None:
        return []
    from pdtrim_core.comparing.compare import compare  # noqa: PLC0415 - only sweeps with benchmarks need it

    outcomes = {end.run.point.name: end.outcome for end in ended if end.outcome is not None}
    of_models: dict[str, dict[Path, tuple[Variant, ...]]] = {}
    for run in wanted.runs:
        if run.point.name in outcomes:
            weights = outcomes[run.point.name].environment.weights
            of_models.setdefault(weights, {})[run.recipe.out] = run.point.variants
    found = []
    for variants in of_models.values():
        try:
            found.append(compare(list(variants), variants, wanted.evaluate.tasks))
        except PdtrimError as error:
            _say(f"no table of benchmarks: {error}")
    return found


def _print_comparisons(about: str, comparisons: Sequence[Comparison]) -> None:
    from pdtrim_core.cli.compare import print_comparison  # noqa: PLC0415 - as above

    if about:
        say(about)
    for comparison in comparisons:
        if len(comparisons) > 1:
            say(f"\n{comparison.model}")
        print_comparison(comparison)


def _print_table(found: dict[str, Any]) -> None:
    from rich.table import Table  # noqa: PLC0415 - the same

    heading, rows = table_of(found)
    table = Table(box=None, pad_edge=False)
    for title in heading:
        table.add_column(title, no_wrap=True, justify="left" if _is_text(title, heading, rows) else "right")
    for row in rows:
        table.add_row(*row)
    if found["about"]:
        say(found["about"])
    print_table(table)


def _is_text(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    cells = [row[heading.index(title)] for row in rows]
    return not all(cell[:1] in "+-0123456789" and "," not in cell for cell in cells)


def _say(text: str) -> None:
    say(text, file=sys.stderr, flush=True)
