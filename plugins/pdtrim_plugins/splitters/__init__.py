"""Splitters: which of decode's elements prefill loses too."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import StageSplitter, hookimpl
from pdtrim_plugins.splitters.ceiling import Budget, KvTail, MixedTail, Pop
from pdtrim_plugins.splitters.experts import Experts
from pdtrim_plugins.splitters.fixed import DensePrefill, KeepSearchResult, Unified
from pdtrim_plugins.splitters.gain import Gain

__all__ = [
    "Budget",
    "DensePrefill",
    "Experts",
    "Gain",
    "KeepSearchResult",
    "KvTail",
    "MixedTail",
    "Pop",
    "Unified",
    "pdtrim_splitters",
]


@hookimpl
def pdtrim_splitters() -> Iterable[type[StageSplitter]]:
    """Yield the splitters."""
    yield from (Gain, Unified, DensePrefill, Budget, KvTail, MixedTail, Pop, Experts, KeepSearchResult)
