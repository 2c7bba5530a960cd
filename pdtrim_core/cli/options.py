"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Trust = Annotated[
    bool, typer.Option("--trust", help="Run the plugin files (.py) that are named there; only run and sweep do so unasked.")
]
