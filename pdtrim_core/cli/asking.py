"""What commands that delete share: sizes in words, and the question before anything goes."""

from __future__ import annotations

import sys

from pdtrim_core.cli.terminal import say
from pdtrim_core.errors import RecipeError


def in_words(size: int) -> str:
    """Return a number of bytes as people say it: 12.3 MB."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def may_delete(question: str, *, yes: bool, command: str) -> bool:
    """Ask on stderr whether to delete, unless the command line said so.

    Raises `RecipeError` where nobody is there to answer.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise RecipeError(command, ["--clean needs a confirmation before it deletes, and this is no terminal: say --yes"])
    # Not typer's own question, which writes to stdout.
    say(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
