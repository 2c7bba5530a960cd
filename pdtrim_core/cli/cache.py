"""`pdtrim-core cache`: what is kept to save work, and cleaning it up."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from pdtrim_core.cli.asking import in_words, may_delete
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.files.atomic_files import cache_folder
from pdtrim_core.results.cleanup import Cached, chosen, find_cached, remove_cached


def cache(
    parts: Annotated[list[str] | None, typer.Argument(help="Parts of the cache, such as merges; all if none is named.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="Delete the parts that are listed, after a question.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without a question.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """List what is kept to save work (merges, converted models, texts to recover from) with its size; it is made when needed."""
    del debug  # main() reads it
    found = chosen(find_cached(), parts or [])
    removed = _clean(found, yes=yes) if clean else []
    if as_json:
        rows = [{**vars(part), "deleted": part in removed} for part in found]
        say_data(json.dumps({"folder": str(cache_folder()), "parts": rows}, indent=1))
    elif not clean:
        say(_text(found))


def _clean(found: list[Cached], *, yes: bool) -> list[Cached]:
    if not found:
        say("there is nothing to delete", file=sys.stderr)
        return []
    total, names = in_words(sum(part.size for part in found)), ", ".join(part.name for part in found)
    if not may_delete(f"Delete {names} in {cache_folder()}, {total}?", yes=yes, command="cache"):
        return []
    gone: list[Cached] = []
    try:
        for part in found:
            remove_cached(part)
            gone.append(part)
    finally:
        # Whatever stands in the way of one, those before it are gone.
        names, size = ", ".join(part.name for part in gone) or "nothing", in_words(sum(part.size for part in gone))
        say(f"deleted {names} in {cache_folder()}, {size}", file=sys.stderr)
    return gone


def _text(found: list[Cached]) -> str:
    if not found:
        return f"{cache_folder()} is empty"
    width = max(len(part.name) for part in found)
    lines = [
        f"{part.name:{width}}  {part.files:>5} file{'s' if part.files != 1 else ' '}  {in_words(part.size):>9}" for part in found
    ]
    return "\n".join([str(cache_folder()), *lines])
