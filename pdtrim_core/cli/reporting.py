"""What several commands print: reports, recipes as TOML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from pdtrim_core.api.writer_kinds import Report
from pdtrim_core.errors import blame
from pdtrim_core.host.host import PluginHost, load_plugins
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import plugin_files
from pdtrim_core.results.outcome import Outcome


def host_of_runs(recipes: Mapping[Path, Mapping[str, Any]], *, trust: bool) -> PluginHost:
    """Return the plugins that runs name in their resolved recipes, by folder, as far as their files are still there."""
    files = (file for run, recipe in recipes.items() for file in plugin_files(recipe, run / "recipe.toml"))
    return load_plugins(dict.fromkeys(file for file in files if file.is_file()), trust=trust)


def reports(made_by: Iterable[Report], host: PluginHost, outcome: Outcome, out: Path) -> Iterator[str]:
    """Yield what reports have to say about a run: their text, or the file that they wrote."""
    for report in made_by:
        with blame(host.label_of(report)):
            made = report.report(outcome, out)
        yield made if isinstance(made, str) else f"report: {made}"


def reports_again(made_by: Sequence[Report], host: PluginHost, outcome: Outcome, out: Path) -> Iterator[str]:
    """Yield the same for a run whose folder may have the files of some reports: these are named and stay as they are."""
    there = [out / report.file for report in made_by if report.file and (out / report.file).is_file()]
    yield from reports([report for report in made_by if out / report.file not in there], host, outcome, out)
    yield from (f"report: {file}" for file in there)


def as_toml(recipe: Recipe) -> str:
    """Return a resolved recipe as TOML."""
    return tomli_w.dumps(recipe.to_data()).rstrip()
