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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Tell nothing while it works: only results and errors.")]
