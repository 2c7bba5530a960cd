"""Installed plugins: which there are, which of them `PDTRIM_PLUGINS` selects, and what came of importing each.

Importing runs other people's code. Whatever goes wrong there is returned as a problem, and what it prints goes to stderr,
since stdout belongs to the results of a command.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import metadata

from pdtrim_core.errors import RecipeError, did_you_mean, reason_of

GROUP = "pdtrim"
ONLY = "PDTRIM_PLUGINS"


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: its name, and the distribution (with version) or file that brought it.

    `code` is a hash of what the file had when it was loaded.
    """

    plugin: str
    source: str
    version: str = ""
    code: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.source} {self.version}".strip()


@dataclass(frozen=True)
class Imported:
    """An installed plugin, or why it cannot be had, and the seconds that importing it took."""

    origin: Origin
    plugin: object = None
    problem: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Installed:
    """The installed plugins that are to be loaded, and the names of those that `PDTRIM_PLUGINS` leaves out."""

    wanted: tuple[tuple[Origin, metadata.EntryPoint], ...]
    left_out: tuple[str, ...] = ()


def installed_plugins() -> Installed:
    """Return what the entry point group `pdtrim` has, in the order of names.

    `PDTRIM_PLUGINS=a,b` selects some, by the name of a distribution or of one of its plugins. Raises `RecipeError`
    for a name that nothing installed has.
    """
    points = [(Origin(point.name, dist.name, dist.version), point) for dist in _distributions() for point in _points(dist)]
    names = os.environ.get(ONLY)
    if names is None:
        return Installed(tuple(points))
    only = {name.strip() for name in names.split(",") if name.strip()}
    known = {name for origin, _ in points for name in (origin.source, origin.plugin)}
    unknown = [f"no installed plugin is called '{name}'{did_you_mean(name, known)}" for name in sorted(only - known)]
    if unknown:
        raise RecipeError(ONLY, unknown)
    wanted = tuple((origin, point) for origin, point in points if only & {origin.source, origin.plugin})
    left_out = {origin.source for origin, _ in points} - {origin.source for origin, _ in wanted}
    return Installed(wanted, tuple(sorted(left_out)))


def import_plugin(origin: Origin, point: metadata.EntryPoint) -> Imported:
    """Import a plugin, and note how long that took."""
    started = time.perf_counter()
    try:
        with redirect_stdout(sys.stderr):
            plugin = point.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code: a plugin that fails to import is recorded
        return Imported(origin, problem=f"cannot import {point.value}: {reason_of(error, kind=True)}")
    return Imported(origin, plugin, seconds=time.perf_counter() - started)


def _distributions() -> list[metadata.Distribution]:
    """Return the distributions that name our group, each once: the first on the path is the one that Python imports."""
    found: dict[str, metadata.Distribution] = {}
    for dist in metadata.distributions():
        # Looking for the group in the text is faster than parsing every file of entry points.
        if f"[{GROUP}]" in (dist.read_text("entry_points.txt") or ""):
            found.setdefault(dist.name, dist)
    return [found[name] for name in sorted(found)]


def _points(dist: metadata.Distribution) -> list[metadata.EntryPoint]:
    return sorted((point for point in dist.entry_points if point.group == GROUP), key=lambda point: point.name)
