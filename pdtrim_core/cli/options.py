"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run the plugin files (.py) that are named there; run, prune, score and sweep do so unasked."),
]
LogFormat = Literal["text", "json"]
Log = Annotated[
    LogFormat,
    typer.Option("--log-format", help="What is told on stderr while it works: text, or json, an object a line for machines."),
]
ExecutorName = Literal["local", "ray"]
ExecutedBy = Annotated[
    ExecutorName,
    typer.Option("--executor", help="Who does the work: local, this process, or ray, workers beside it or on other machines."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="With --executor ray: so many workers (default: one an accelerator)."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="With --executor ray: the head of a cluster, or auto on one of its machines (default: start Ray here).",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Tell nothing while it works: only results and errors.")]
