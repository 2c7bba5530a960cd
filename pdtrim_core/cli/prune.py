"""`pdtrim-core prune`: prune a model without a recipe; the recipe that was run is written into the run's folder."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pdtrim_core.cli.completing import (
    complete_dtypes,
    complete_methods,
    complete_placements,
    complete_presets,
    complete_settings,
)
from pdtrim_core.cli.executing import Executed
from pdtrim_core.cli.options import Address, ExecutedBy, Log, Quiet, Trust, Workers
from pdtrim_core.cli.progress import progress_display
from pdtrim_core.cli.run import carry_out
from pdtrim_core.errors import RecipeError
from pdtrim_core.recipe import presets
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import change, parse_settings, without

PRUNER_SETS = ("scorer", "searcher", "distiller", "search", "prune.merges", "prune.merge_threshold")
"""Keys of a preset that say how blocks are searched for: another pruner has its own way."""


def prune(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, a GGUF file, or package:NAME.", show_default=False)],
    blocks: Annotated[
        int | None,
        typer.Option(min=1, help="How many blocks decode loses, or channels of as many.", show_default=False),
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="The share of all parameters that decode loses (default: the preset's).")
    ] = None,
    prefill_at_most: Annotated[
        float | None, typer.Option(help="FLOPs of prefill, as a share of the dense model's (default: the preset's).")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="PRUNER", autocompletion=complete_methods, help="Another pruner for decode, such as shortgpt or flap."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            autocompletion=complete_presets,
            help=f"What else the recipe says: {', '.join(presets.NAMES)} (default: {presets.DEFAULT}; with --blocks, "
            f"{presets.BLOCKS}).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder (default: one under runs/).", show_default=False)] = None,
    dtype: Annotated[
        str | None,
        typer.Option(autocompletion=complete_dtypes, help="The number format of the weights.", show_default=False),
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(
            autocompletion=complete_placements,
            help="Where the weights are: auto, balanced, stream, or a device as torch names it.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(hidden=True)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            autocompletion=complete_settings,
            help="Change another key of the recipe; may be repeated.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe instead of running it.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of going on with what the folder has.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    executor: ExecutedBy = "local",
    workers: Workers = None,
    address: Address = None,
    log: Log = "text",
    quiet: Quiet = False,
    trust: Trust = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Prune a model without a recipe: decode loses a share of its weights, prefill what the budget asks for.

    What is run is a recipe: that of the preset, changed by the options. It is written into the run's folder, from where run,
    check and sweep take it. `pdtrim-core describe preset NAME` prints a preset.
    """
    del debug  # main() reads it
    if blocks is not None and fraction is not None:
        raise RecipeError("prune", ["--blocks and --fraction both say how much goes: leave out one of them"])
    preset = preset or (presets.DEFAULT if blocks is None else presets.BLOCKS)
    data: dict[str, Any] = {"model": {"path": model}, **presets.preset(preset)}
    if blocks is not None:
        data = change(without(data, "prune.fraction"), {"prune.blocks": blocks})
    if method is not None:
        for key in PRUNER_SETS:
            data = _left_out(data, key)
    given = {
        "prune.fraction": fraction,
        "pruner": method,
        "model.dtype": dtype,
        "model.placement": _placement(placement),
        "model.device": device,
    }
    data = change(data, {key: value for key, value in given.items() if value is not None})
    if prefill_at_most is not None:
        capped = "prefill_at_most" in data["splitter"]
        data["splitter"] = {"use": data["splitter"]["use"] if capped else "kv-tail", "prefill_at_most": prefill_at_most}
    recipe = Recipe.from_data(
        data,
        changes=parse_settings(settings or ()),
        where="prune",
        out=out or Path("runs") / _named(model, data["prune"], method or preset),
        trust=trust or not dry_run,
    )
    display = progress_display(sys.stderr, log, quiet=quiet)
    by = Executed(executor, workers, address)
    carry_out(recipe, "prune", display, by, dry_run=dry_run, fresh=fresh, as_json=as_json)


def _placement(given: str | None) -> Any:
    """Return a placement as a recipe says it: a table is given as in TOML."""
    table = given is not None and given.startswith("{")
    return parse_settings([f"placement={given}"])["placement"] if table else given


def _left_out(data: dict[str, Any], key: str) -> dict[str, Any]:
    try:
        return without(data, key)
    except KeyError:
        return data


def _named(model: str, much: dict[str, Any], way: str) -> str:
    """Return the name of a run's folder, from what tells runs of one model apart."""
    name = re.sub(r"[^\w.-]+", "-", model.rstrip("/").rpartition("/")[2].rpartition(":")[2].removesuffix(".gguf")).strip("-.")
    how_much = f"{much['blocks']}-blocks" if "blocks" in much else f"{100 * much['fraction']:g}-percent"
    return "-".join(filter(None, [name or "model", way, how_much]))
