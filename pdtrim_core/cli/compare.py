"""`pdtrim-core compare`: runs side by side in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from pdtrim_core.cli.completing import complete_variants
from pdtrim_core.cli.terminal import print_table, say, say_data
from pdtrim_core.errors import RecipeError, did_you_mean
from pdtrim_core.results.task_results import Variant
from pdtrim_core.wording import visible

if TYPE_CHECKING:
    from pdtrim_core.comparing.compare import Comparison


def compare(
    runs: Annotated[list[Path] | None, typer.Argument(help="The folders of finished runs.", show_default=False)] = None,
    variants: Annotated[
        str,
        typer.Option(
            "--variants",
            "--sides",
            autocompletion=complete_variants,
            help="The variants to show, a row each: staged, unrecovered, unquantized, unselected, unified, prefill, decode, "
            "dense, with commas between.",
        ),
    ] = "staged",
    tasks: Annotated[str, typer.Option(help="The tasks to show, in this order (default: all that were measured).")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print the table as LaTeX.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Print one table of runs by tasks, with paired differences to the first row, what each stage loses, and what that costs."""
    del debug  # main() reads it
    wanted, problems = _words(variants), _wrong_variants(_words(variants))
    if as_json + as_markdown + as_latex > 1:
        problems.append("--json, --markdown, --latex: choose one")
    if problems:
        raise RecipeError("pdtrim-core compare", problems)
    from pdtrim_core.comparing import text  # noqa: PLC0415 - the other commands do without
    from pdtrim_core.comparing.compare import compare as compared  # noqa: PLC0415 - the other commands do without

    found = compared(runs or [], cast("list[Variant]", wanted), _words(tasks))
    if as_json:
        say_data(found.to_json(), end="")
    elif as_markdown:
        say(text.markdown(found), end="")
    elif as_latex:
        say(text.latex(found), end="")
    else:
        print_comparison(found)


def _wrong_variants(wanted: list[str]) -> list[str]:
    if not wanted:
        return ["--variants: name at least one"]
    known = get_args(Variant)
    return [
        f"--variants: there is no variant '{variant}'{did_you_mean(variant, known)}" for variant in wanted if variant not in known
    ]


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison in the terminal, the best in bold."""
    from rich.table import Table  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    from pdtrim_core.comparing.text import notes_of, text_table_of  # noqa: PLC0415 - the other commands do without

    grid = text_table_of(comparison)
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(grid.heading):
        table.add_column(title, no_wrap=True, justify="left" if number == 0 else "right")
    for row, cells in enumerate(grid.rows):
        # In capitals or with a mark it would be no number; where a terminal shows no bold there is --markdown.
        table.add_row(*(Text(visible(cell), "bold" if (row, column) in grid.best else "") for column, cell in enumerate(cells)))
    print_table(table)
    for note in notes_of(comparison):
        say(f"note: {note}")


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
