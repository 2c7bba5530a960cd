"""Quantizers: number formats for the linear layers of a stage."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import Quantizer, hookimpl
from pdtrim_plugins.quantizers.rtn import RoundToNearest


@hookimpl
def pdtrim_quantizers() -> Iterable[type[Quantizer]]:
    """Yield the quantizers."""
    yield RoundToNearest
