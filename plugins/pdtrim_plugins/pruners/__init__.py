"""Other pruners: the splitters refine their removals into prefill subsets; some give a whole other model instead."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core import Pruner, hookimpl
from pdtrim_plugins.pruners.flap import Flap
from pdtrim_plugins.pruners.shortened import ShortenedPpl, ShortenedTaylor
from pdtrim_plugins.pruners.shortgpt import ShortGpt
from pdtrim_plugins.pruners.sleb import Sleb
from pdtrim_plugins.pruners.slicegpt import SliceGpt

__all__ = ["Flap", "ShortGpt", "ShortenedPpl", "ShortenedTaylor", "Sleb", "SliceGpt"]


@hookimpl
def pdtrim_pruners() -> Iterable[type[Pruner]]:
    """Yield the pruners."""
    yield from (ShortGpt, Sleb, ShortenedPpl, ShortenedTaylor, Flap, SliceGpt)
