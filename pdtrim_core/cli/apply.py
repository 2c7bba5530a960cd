"""`pdtrim-core apply`: what other programs use of a plan that somebody shared, without its run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pdtrim_core.cli.export import PushToHub, To, check_push, exporters_of, push_written, size_of
from pdtrim_core.cli.logs import remark
from pdtrim_core.cli.options import Log, Quiet
from pdtrim_core.cli.progress import progress_display
from pdtrim_core.cli.terminal import say
from pdtrim_core.host.host import load_plugins
from pdtrim_core.results.run_folder import load_plan


def apply(
    plan: Annotated[Path, typer.Argument(help="A plan.json, or the folder of a run.", show_default=False)],
    model: Annotated[str, typer.Argument(help="The model that it was made for, as recipes name it.", show_default=False)],
    to: To,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("exports"),
    dtype: Annotated[str | None, typer.Option(help="Number format of the weights: short for --set dtype=...")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set an option of the exporters; may be repeated.")
    ] = None,
    push_to_hub: PushToHub = None,
    log: Log = "text",
    quiet: Quiet = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Apply a plan file to its model and write checkpoints or files for an engine: nothing is searched or measured.

    A plan that only removes blocks is one small file. What it says of merged blocks, recovered weights and number formats lies in
    folders beside it, which go with it.
    """
    del debug  # main() reads it
    check_push(push_to_hub)
    saved = load_plan(plan)
    host = load_plugins()
    exporters = exporters_of(to, settings, dtype, host)
    from pdtrim_core.pipeline.export import lent, remarks_on, write_exports  # noqa: PLC0415 - imports torch
    from pdtrim_core.pipeline.plan_alone import open_for_plan, outcome_of_plan  # noqa: PLC0415 - the same

    folder = plan if plan.is_dir() else plan.parent
    with progress_display(sys.stderr, log, quiet=quiet).working(f"writing {to}"), lent(folder, out):
        opened = open_for_plan(saved, model, host, where="apply")
        outcome = outcome_of_plan(saved, opened, folder, host)
        written = []
        for path in write_exports(exporters, host, outcome, opened, out):
            written.append(path)
            say(f"{path}  {size_of(path)}", flush=True)
        for text in remarks_on(exporters, host, opened):
            remark(text)
        push_written(written, push_to_hub)
