"""Other pruners, whose removals the splitters refine into prefill subsets."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core import Pruner, hookimpl
from pdtrim_plugins.pruners.laco import LaCo
from pdtrim_plugins.pruners.shortgpt import ShortGpt
from pdtrim_plugins.pruners.streamline import Streamline

__all__ = ["LaCo", "ShortGpt", "Streamline"]


@hookimpl
def pdtrim_pruners() -> Iterable[type[Pruner]]:
    """Yield the pruners."""
    yield from (LaCo, ShortGpt, Streamline)
