"""`python -m pdtrim_core.cli`: the same command line."""

from __future__ import annotations

from pdtrim_core.cli import main

main()
