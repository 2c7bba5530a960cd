"""`python -m pdtrim_core`: the command line, where its script is not on the path."""

from __future__ import annotations

from pdtrim_core.cli import main

main()
