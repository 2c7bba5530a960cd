"""All kinds of component, by the recipe keys that name them; each kind is an abstract class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pdtrim_core.api.component import Component
from pdtrim_core.api.item_kinds import CalibrationSource, Objective
from pdtrim_core.api.kv_selector import KvSelector
from pdtrim_core.api.layer_kinds import Quantizer, Recovery
from pdtrim_core.api.model_source import ModelSource
from pdtrim_core.api.plan_kinds import Distiller, Pruner, Scorer, Searcher, StageSplitter
from pdtrim_core.api.writer_kinds import Exporter, Report

KINDS: dict[str, type[Component]] = {
    cls.kind: cls
    for cls in (
        Scorer,
        Searcher,
        Pruner,
        Distiller,
        StageSplitter,
        Recovery,
        Quantizer,
        KvSelector,
        Objective,
        CalibrationSource,
        ModelSource,
        Exporter,
        Report,
    )
}
"""The kinds of component by the recipe key that names them, but for those in `TABLES`."""
TABLES: Mapping[str, str] = {"quantizer": "formats"}
"""The recipe keys of kinds that have another one than their name."""


def key_of(kind: str) -> str:
    """Return the recipe key that names the components of a kind."""
    return TABLES.get(kind, kind)


def options_of(component: type[Component]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the pydantic field of each option of a component."""
    yield from component.model_fields.items()
