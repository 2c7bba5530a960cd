"""`pdtrim-core export`: what other programs use of a finished run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pdtrim_core.api.writer_kinds import Exporter
from pdtrim_core.cli.completing import complete_exporters
from pdtrim_core.cli.logs import remark
from pdtrim_core.cli.options import Log, Quiet, Trust
from pdtrim_core.cli.progress import progress_display
from pdtrim_core.cli.terminal import say
from pdtrim_core.errors import RecipeError
from pdtrim_core.host.host import PluginHost
from pdtrim_core.recipe.toml_data import parse_settings

To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="NAME[,NAME]",
        autocompletion=complete_exporters,
        help="The exporters, by name, such as checkpoints,gguf; `describe exporter` lists them.",
        show_default=False,
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub",
        metavar="ORG/NAME",
        help="Also put what is written into this repository of the Hugging Face hub; a new one is private.",
        show_default=False,
    ),
]


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    to: To,
    out: Annotated[Path | None, typer.Option(help="The folder to write to, instead of the run's.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Number format of the weights: short for --set dtype=...")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set an option of the exporters; may be repeated.")
    ] = None,
    push_to_hub: PushToHub = None,
    log: Log = "text",
    quiet: Quiet = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Write what other programs use of a finished run: checkpoints, files for a serving engine."""
    del debug  # main() reads it
    check_push(push_to_hub)
    from pdtrim_core.pipeline.export import lent, remarks_on, write_exports  # noqa: PLC0415 - not needed to print --help
    from pdtrim_core.pipeline.open_run import load_run  # noqa: PLC0415 - imports torch

    loaded = load_run(run, trust=trust)
    exporters = exporters_of(to, settings, dtype, loaded.host)
    folder, display = out or run, progress_display(sys.stderr, log, quiet=quiet)
    with lent(run, folder), display.working(f"writing {to}"):
        written = []
        for path in write_exports(exporters, loaded.host, loaded.outcome, loaded.dense, folder):
            written.append(path)
            say(f"{path}  {size_of(path)}", flush=True)
        for text in remarks_on(exporters, loaded.host, loaded.dense):
            remark(text)
        push_written(written, push_to_hub)


def check_push(repository: str | None) -> None:
    """Raise `RecipeError` for what is no name of a repository, before anything is opened."""
    if repository is not None:
        from pdtrim_core.pipeline.push import check_repository  # noqa: PLC0415 - slow to import

        check_repository(repository)


def push_written(paths: Sequence[Path], repository: str | None) -> None:
    """Push what was written, and say where it is; without a repository do nothing."""
    if repository is not None:
        from pdtrim_core.pipeline.push import push  # noqa: PLC0415 - slow to import

        say(push(paths, repository))


def exporters_of(to: str, settings: Sequence[str] | None, dtype: str | None, host: PluginHost) -> tuple[Exporter, ...]:
    """Return the exporters that the options `--to`, `--set` and `--dtype` name. Raises `RecipeError` for what is not there."""
    from pdtrim_core.pipeline.export import make_exporters  # noqa: PLC0415 - not needed to print --help

    names = [name.strip() for name in to.split(",") if name.strip()]
    if not names:
        raise RecipeError("--to", ["name an exporter: pdtrim-core plugins lists them"])
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    return make_exporters(names, {**options, **parse_settings(settings or ())}, host)


def size_of(path: Path) -> str:
    """Return how large a file or a folder is, in words."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
