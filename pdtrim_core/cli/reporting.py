"""What several commands print: reports, recipes as TOML."""

from __future__ import annotations

from collections.abc import Iterator

import tomli_w

from pdtrim_core.errors import blame
from pdtrim_core.outcome import Outcome
from pdtrim_core.plugins import PluginHost
from pdtrim_core.recipe import Recipe


def reports(recipe: Recipe, host: PluginHost, outcome: Outcome) -> Iterator[str]:
    """Yield what the recipe's reports have to say: their text, or the file that they wrote."""
    for report in recipe.reports:
        with blame(host.label_of(report)):
            made = report.report(outcome, recipe.out)
        yield made if isinstance(made, str) else f"report: {made}"


def as_toml(recipe: Recipe) -> str:
    """Return a resolved recipe as TOML."""
    return tomli_w.dumps(recipe.to_data()).rstrip()
