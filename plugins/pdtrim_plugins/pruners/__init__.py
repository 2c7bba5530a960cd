"""Other pruning methods. A splitter chooses which of their removals prefill makes too; some replace the whole model instead."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import Pruner, hookimpl
from pdtrim_plugins.pruners.fisher import Fisher
from pdtrim_plugins.pruners.flap import Flap
from pdtrim_plugins.pruners.laco import LaCo
from pdtrim_plugins.pruners.llm_drop import LlmDrop
from pdtrim_plugins.pruners.llm_pruner import LlmPruner
from pdtrim_plugins.pruners.reap import Frequency, Reap
from pdtrim_plugins.pruners.shortened import ShortenedPpl, ShortenedTaylor
from pdtrim_plugins.pruners.shortgpt import ShortGpt
from pdtrim_plugins.pruners.sleb import Sleb
from pdtrim_plugins.pruners.slicegpt import SliceGpt
from pdtrim_plugins.pruners.streamline import Streamline
from pdtrim_plugins.pruners.torch_pruning_importance import TorchPruning

__all__ = [
    "Fisher",
    "Flap",
    "Frequency",
    "LaCo",
    "LlmDrop",
    "LlmPruner",
    "Reap",
    "ShortGpt",
    "ShortenedPpl",
    "ShortenedTaylor",
    "Sleb",
    "SliceGpt",
    "Streamline",
    "TorchPruning",
]


@hookimpl
def pdtrim_pruners() -> Iterable[type[Pruner]]:
    """Yield the pruners."""
    yield from (
        ShortGpt,
        Sleb,
        ShortenedPpl,
        ShortenedTaylor,
        LlmPruner,
        TorchPruning,
        Flap,
        Fisher,
        Streamline,
        LaCo,
        SliceGpt,
        LlmDrop,
        Reap,
        Frequency,
    )
