"""Comparisons as a notebook shows them, for those who compare runs from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdtrim_core.comparing import compare as comparing
from pdtrim_core.comparing.text import html
from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.paths import PathLike
from pdtrim_core.results.task_results import Variant


@dataclass(frozen=True)
class Comparison(comparing.Comparison):
    """A table of rows by columns, which a notebook shows. `to_data()` and `to_json()` give it as data."""

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return html(self)


def compare(
    paths: Sequence[PathLike],
    variants: Sequence[Variant] | Mapping[PathLike, Sequence[Variant]] = ("staged",),
    tasks: Sequence[str] = (),
) -> Comparison:
    """Compare finished runs by the tasks that they were evaluated on, or else by their own objective and their fidelity.

    `variants` are the same for all runs, or given for each; `tasks` are those to show, all without them. Raises `PdtrimError` for
    runs of different models and for runs that have no task in common.
    """
    if isinstance(paths, str | os.PathLike):
        raise PdtrimError(f"compare takes a list of runs: compare([{str(paths)!r}, ...])")
    chosen = {Path(path): own for path, own in variants.items()} if isinstance(variants, Mapping) else variants
    return Comparison(**vars(comparing.compare([Path(path) for path in paths], chosen, tasks)))
