"""`pdtrim-core runs`: which runs there are, what they take up, and cleaning up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pdtrim_core.cli.asking import in_words, may_delete
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.results.cleanup import StoredRun, find_runs, remove_run, why_not

DEFAULT = Path("runs")


def runs(
    places: Annotated[list[Path] | None, typer.Argument(help="Runs, or folders of runs; runs/ if none is named.")] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Only runs that have not come to their end.")] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Delete the runs that are listed, after a question.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without a question.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """List runs with their state and size. With --clean, delete them: nothing but run folders is ever deleted."""
    del debug  # main() reads it
    found = find_runs(places or ([DEFAULT] if DEFAULT.is_dir() else []))
    found = [run for run in found if not unfinished or run.state == "unfinished"]
    removed = _clean(found, yes=yes) if clean else []
    if as_json:
        say_data(json.dumps([_data(run, removed=run in removed) for run in found], indent=1))
    elif not clean:
        say(_text(found))


def _clean(found: list[StoredRun], *, yes: bool) -> list[StoredRun]:
    going = [run for run in found if why_not(run) is None]
    for run in found:
        if run not in going:
            say(f"{run.path} stays: {why_not(run)}", file=sys.stderr)
    if not going:
        say("there is nothing to delete", file=sys.stderr)
        return []
    for run in going:
        also = f", with {', '.join(run.besides)}" if run.besides else ""
        say(f"{run.path}: {in_words(run.size)}{also}", file=sys.stderr)
    total = in_words(sum(run.size for run in going))
    if not may_delete(f"Delete {_count(going)}, {total}?", yes=yes, command="runs"):
        return []
    gone: list[StoredRun] = []
    try:
        for run in going:
            remove_run(run)
            gone.append(run)
    finally:
        # Whatever stands in the way of one, those before it are gone.
        say(f"deleted {_count(gone)}, {in_words(sum(run.size for run in gone))}", file=sys.stderr)
    return gone


def _data(run: StoredRun, *, removed: bool) -> dict[str, Any]:
    return {**vars(run), "path": str(run.path), "besides": list(run.besides), "deleted": removed}


def _text(found: list[StoredRun]) -> str:
    if not found:
        return "no runs here"
    path, model = (max(len(str(getattr(run, key))) for run in found) for key in ("path", "model"))
    lines = [f"{run.path!s:{path}}  {run.state:10}  {run.changed}  {run.model:{model}}  {in_words(run.size):>9}" for run in found]
    return "\n".join([*lines, f"{_count(found)}, {in_words(sum(run.size for run in found))}"])


def _count(found: list[StoredRun]) -> str:
    return f"{len(found)} run{'s' * (len(found) != 1)}"
