"""Other pruners, whose removals the splitters refine into prefill subsets."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core import Pruner, hookimpl
from pdtrim_plugins.pruners.flap import Flap
from pdtrim_plugins.pruners.shortgpt import ShortGpt

__all__ = ["Flap", "ShortGpt"]


@hookimpl
def pdtrim_pruners() -> Iterable[type[Pruner]]:
    """Yield the pruners."""
    yield Flap
    yield ShortGpt
