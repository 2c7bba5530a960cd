"""`pdtrim-core score`: what a recipe's scorer makes of the model's blocks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pdtrim_core.cli.completing import complete_settings
from pdtrim_core.cli.options import Log, Quiet
from pdtrim_core.cli.progress import progress_display
from pdtrim_core.cli.terminal import say, say_data
from pdtrim_core.host.host import Origin
from pdtrim_core.recipe.missing import check_there
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import parse_settings

if TYPE_CHECKING:
    from pdtrim_core.pipeline.rank import Ranking


def score(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", autocompletion=complete_settings, help="Change a key of the recipe; may be repeated."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    log: Log = "text",
    quiet: Quiet = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Rank the blocks of a recipe's model by its scorer, the safest to remove first; measure nothing."""
    del debug  # main() reads it
    wanted = Recipe.read(recipe, changes=parse_settings(settings or ()))
    check_there(wanted, str(recipe))
    wanted.host.register(progress_display(sys.stderr, log, quiet=quiet), Origin("progress", "pdtrim-core"))
    from pdtrim_core.pipeline.rank import rank  # noqa: PLC0415 - imports torch

    ranking = rank(wanted)
    say_data(json.dumps(_data(ranking), indent=1)) if as_json else say(_text(ranking))


def _data(ranking: Ranking) -> dict[str, object]:
    scores = ranking.scores
    return {**vars(ranking), "scores": list(scores.block), "pairs": list(scores.pair), "ranking": list(scores.ranking())}


def _text(ranking: Ranking) -> str:
    scores = ranking.scores
    lines = [f"{ranking.model}: scorer {ranking.scorer} over {ranking.items} items; higher is safer to remove", ""]
    lines.append(f"{'rank':>4}  {'block':>5}  {'score':>12}")
    lines += [f"{place:>4}  {block:>5}  {scores.block[block]:>12.6g}" for place, block in enumerate(scores.ranking(), start=1)]
    return "\n".join(lines)
