"""Other pruners, whose removals the splitters refine into prefill subsets."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core import Pruner, hookimpl
from pdtrim_plugins.pruners.flap import Flap
from pdtrim_plugins.pruners.shortened import ShortenedPpl, ShortenedTaylor
from pdtrim_plugins.pruners.shortgpt import ShortGpt
from pdtrim_plugins.pruners.sleb import Sleb

__all__ = ["Flap", "ShortGpt", "ShortenedPpl", "ShortenedTaylor", "Sleb"]


@hookimpl
def pdtrim_pruners() -> Iterable[type[Pruner]]:
    """Yield the pruners."""
    yield Flap
    yield ShortGpt
    yield Sleb
    yield ShortenedPpl
    yield ShortenedTaylor
