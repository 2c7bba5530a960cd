"""Exporters: what other programs use."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core import Exporter, hookimpl
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.plan import PlanFile


@hookimpl
def pdtrim_exporters() -> Iterable[type[Exporter]]:
    """Yield the exporters."""
    yield from (PlanFile, Checkpoints)
