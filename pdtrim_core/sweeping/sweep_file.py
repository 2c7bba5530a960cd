"""What a sweep file may say."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pdtrim_core.results.task_results import Variant
from pdtrim_core.sweeping.evaluate_table import Evaluate
from pdtrim_core.sweeping.table import DEFAULT_COLUMNS


class Entry(BaseModel):
    """One line of a sweep's table: settings, and a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("", description="name of the run and of its folder (default: made from the settings)")
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe, as in [grid] but with one value each")
    unset: tuple[str, ...] = Field((), description="dotted keys of the recipe that this run leaves out, so that defaults hold")
    variants: tuple[Variant, ...] = Field((), description="what answers of this run, instead of the variants of [evaluate]")


class SweepFile(BaseModel):
    """What a sweep file may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sweep: int = Field(ge=1, le=1, description="format of the file")
    about: str = Field("", description="what the sweep is for, in a line; it stands above its table")
    out: str = Field("", description="folder of the sweep, with a folder a run (default: runs/ and the file's name)")
    recipe: Any = Field(description="recipe that every run starts from: a file, relative to this one, or a table")
    set: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe that are other ones in all runs")
    grid: dict[str, Any] = Field(
        default_factory=dict, description="keys of the recipe with lists of values; all combinations run"
    )
    runs: tuple[Entry, ...] = Field((), description="single runs; with a grid, each of them in all its combinations")
    columns: tuple[str, ...] = Field(DEFAULT_COLUMNS, description="columns of the table, behind the settings")
    evaluate: Evaluate | None = Field(None, description="benchmarks for every run, which then make the table")
