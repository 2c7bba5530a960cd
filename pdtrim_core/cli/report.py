"""`pdtrim-core report`: the page of a run again, or one page about several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pdtrim_core.api.writer_kinds import Report
from pdtrim_core.cli import reporting
from pdtrim_core.cli.options import Trust
from pdtrim_core.cli.terminal import say
from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.host.host import PluginHost
from pdtrim_core.recipe.parts import make_parts
from pdtrim_core.results.record import read_record

COMPARISON = "comparison"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, finished or not.", show_default=False)],
    use: Annotated[str, typer.Option(help="The report: one that writes a file.")] = "html",
    out: Annotated[
        Path | None, typer.Option(help="The file; else in the run's folder, or of several runs comparison.html here.")
    ] = None,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Make the page of a run again, or one page with several runs side by side."""
    del debug  # main() reads it
    records = [read_record(path) for path in runs]
    host = reporting.host_of_runs({record.path: record.recipe for record in records}, trust=trust)
    made_by = _report_called(use, host)
    file = out or (runs[0] / made_by.file if len(runs) == 1 else Path(COMPARISON).with_suffix(Path(made_by.file).suffix))
    if file.is_dir():
        raise PdtrimError(f"{file} is a folder: name a file with --out")
    if not file.parent.is_dir():
        raise PdtrimError(f"{file.parent} does not exist: name a file in a folder that does with --out")
    with blame(host.label_of(made_by)):
        say(f"report: {made_by.page(records, file)}")


def _report_called(name: str, host: PluginHost) -> Report:
    (made_by,) = make_parts("report", [name], host, where="--use")
    if not made_by.file:
        raise PdtrimError(f"report '{name}' prints text: see it with pdtrim-core show, or say --use of one that writes a file")
    return made_by
