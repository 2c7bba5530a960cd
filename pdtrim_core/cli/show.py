"""`pdtrim-core show`: a run again, or two plans side by side."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pdtrim_core.api.writer_kinds import Report
from pdtrim_core.cli import reporting
from pdtrim_core.cli.options import Trust
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.errors import PdtrimError, RecipeError
from pdtrim_core.host.host import PluginHost
from pdtrim_core.plan.diagram import draw_diagram
from pdtrim_core.plan.elements import Element
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.plan.selections import Selection
from pdtrim_core.recipe.parts import make_parts
from pdtrim_core.recipe.toml_data import DEFAULTS
from pdtrim_core.results.run_folder import load_outcome, load_plan

HASH_SHOWN = 12


def show(
    run: Annotated[Path, typer.Argument(help="A run folder, or a plan.json.", show_default=False)],
    other: Annotated[Path | None, typer.Argument(help="A second one, to compare the block diagrams.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Show the block diagram of both stages, with the results of the run."""
    del debug  # main() reads it
    if as_json:
        paths = [run, other] if other else [run]
        plans = [load_plan(path).to_data() for path in paths]
        say_data(json.dumps(plans if other else plans[0], indent=1))
    elif other is not None:
        say(_side_by_side(run, other))
    elif run.is_file():
        saved = load_plan(run)
        about = f"{saved.model}, first token by {saved.first_token}{_recovered(saved)}"
        say(f"{about}\n\n{draw_diagram(saved.plan, saved.block_count)}")
    else:
        _whole_run(run, trust=trust)


def _whole_run(path: Path, *, trust: bool) -> None:
    outcome = load_outcome(path)
    host = reporting.host_of_runs({path: outcome.recipe}, trust=trust)
    # An old run needs none of its other parts.
    given = outcome.recipe.get("report", DEFAULTS["report"])
    reports = _reports(given, host, path)
    for text in reporting.reports_again(reports, host, outcome, path):
        say(text)


def _reports(given: Any, host: PluginHost, path: Path) -> tuple[Report, ...]:
    """Return the reports of a run; where some come from a plugin file that was not run, those that are there."""
    where = str(path / "recipe.toml")
    found: list[Report] = []
    if not host.not_run:
        return make_parts("report", given, host, where=where)
    for one in given if isinstance(given, list) else [given]:
        try:
            found += make_parts("report", one, host, where=where)
        except RecipeError as error:
            say(f"warning: {error.problems[0]}", file=sys.stderr)
    return tuple(found)


def _side_by_side(run: Path, other: Path) -> str:
    first, second = load_plan(run), load_plan(other)
    if first.block_count != second.block_count:
        raise PdtrimError(
            f"{run} is a plan for {first.block_count} blocks ({first.model}), {other} for {second.block_count} ({second.model})"
        )
    texts = [
        f"{path} ({saved.model}{_recovered(saved)})\n{draw_diagram(saved.plan, saved.block_count)}"
        for path, saved in ((run, first), (other, second))
    ]
    lines = []
    parts: dict[str, list[set[Element | Selection]]] = {
        "prefill": [set(saved.plan.prefill) for saved in (first, second)],
        "decode": [set(saved.plan.decode) for saved in (first, second)],
        "read of prompts": [set(saved.plan.selections) for saved in (first, second)],
    }
    for what, (ours, theirs) in parts.items():
        if what == "read of prompts" and not ours | theirs:
            continue
        only = [
            f"only {run}: {_names(ours - theirs)}",
            f"only {other}: {_names(theirs - ours)}",
            f"both: {_names(ours & theirs)}",
        ]
        lines.append(f"{what}: " + "; ".join(only))
    return "\n\n".join([*texts, "\n".join(lines)])


def _recovered(saved: SavedPlan) -> str:
    """Return the hash of a plan's recovered weights, and its formats: plans that lose the same may differ in them."""
    recovered = f", recovered weights {saved.recovered[:HASH_SHOWN]}" if saved.recovered else ""
    return recovered + (f", formats {saved.formats}" if saved.formats else "")


def _names(elements: set[Element | Selection]) -> str:
    return ", ".join(sorted(map(str, elements), key=_with_numbers)) or "-"


def _with_numbers(text: str) -> list[tuple[bool, int, str]]:
    """Return what texts are sorted by when the numbers in them count as numbers."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"([0-9]+)", text) if part]
