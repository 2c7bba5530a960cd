"""`pdtrim-core export`: what other programs use of a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pdtrim_core.cli.options import Trust
from pdtrim_core.cli.terminal import say
from pdtrim_core.errors import RecipeError
from pdtrim_core.recipe.toml_data import parse_settings


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="NAME[,NAME]", help="The exporters, by name.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The folder to write to, instead of the run's.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Number format of the weights: short for --set dtype=...")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set an option of the exporters; may be repeated.")
    ] = None,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Write what other programs use of a finished run: checkpoints, files for a serving engine."""
    del debug  # main() reads it
    names = [name.strip() for name in to.split(",") if name.strip()]
    if not names:
        raise RecipeError("--to", ["name an exporter: pdtrim-core plugins lists them"])
    options = _options(settings or [], dtype)
    from pdtrim_core.pipeline.export import lent, make_exporters, remarks_on, write_exports  # noqa: PLC0415 - not needed to print --help
    from pdtrim_core.pipeline.open_run import load_run  # noqa: PLC0415 - imports torch

    loaded = load_run(run, trust=trust)
    exporters = make_exporters(names, options, loaded.host)
    folder = out or run
    with lent(run, folder):
        for path in write_exports(exporters, loaded.host, loaded.outcome, loaded.dense, folder):
            say(f"{path}  {_size(path)}")
        for remark in remarks_on(exporters, loaded.host, loaded.dense):
            say(remark, file=sys.stderr)


def _options(settings: list[str], dtype: str | None) -> dict[str, Any]:
    return {**({} if dtype is None else {"dtype": dtype}), **parse_settings(settings)}


def _size(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
