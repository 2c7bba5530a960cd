"""What a recipe cannot have where the model's weights stay on the disk: all that would read them again and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pdtrim_core.api.component import Component
from pdtrim_core.model.placement import STREAM
from pdtrim_core.recipe.settings import GENERATED, Settings

AGAIN_AND_AGAIN = "would read all weights from the disk again and again"


def of_streaming(settings: Settings, parts: Mapping[str, Any]) -> list[str]:
    """Return what does not go with `placement = "stream"`; a part that could not be made is None, and is passed."""
    found = [*_of_parts(settings, parts), *_of_texts(settings, parts), *_of_later_steps(settings, parts)]
    return [f"{key}: with model.placement = {STREAM} {problem}" for key, problem in found]


def _of_parts(settings: Settings, parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not parts["model"].streams:
        yield "model", f"weights stay in safetensors files, and the source '{parts['model'].name}' has none: convert the model"
    for key, component in _that_run_blocks(settings, parts):
        if not component.streams:
            yield key, f"{component.kind} '{component.name}' {AGAIN_AND_AGAIN}: choose another"
    if getattr(parts["splitter"], "needs_model", False):
        yield "splitter", f"'{parts['splitter'].name}' would time the disk, not the model: choose another"


def _that_run_blocks(settings: Settings, parts: Mapping[str, Any]) -> Iterator[tuple[str, Component]]:
    """Yield the components of a recipe that run blocks, as far as they are used."""
    if parts["pruner"] is not None:
        single: Sequence[str] = ("pruner", "distiller")
    else:
        single = ("scorer", "distiller") if settings.prune.merges else ("scorer",)
    yield from ((kind, parts[kind]) for kind in single if parts[kind] is not None)
    yield from ((f"recovery.{number}", part) for number, part in enumerate(parts["recovery"]) if part is not None)


def _of_texts(settings: Settings, parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what wants texts that the dense model writes, which takes a pass through all weights for each token."""
    if getattr(parts["objective"], "answer_length", 0):
        yield (
            "objective",
            (
                f"the dense model's answers, which '{parts['objective'].name}' wants, {AGAIN_AND_AGAIN}, once a token: say "
                'along = "right", or choose another'
            ),
        )
    if parts["recovery"] and GENERATED in settings.recovery_data.sources:
        yield (
            "recovery_data.sources",
            (
                f"texts that the dense model writes {AGAIN_AND_AGAIN}, once for each token: name calibration or a file, or say "
                'recovery = "none"'
            ),
        )


def _of_later_steps(settings: Settings, parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if getattr(parts["quantizer"], "formats", None):
        yield "formats", "quantised copies of all layers would have to be in memory: quantise what is exported"
    if parts["kv_selector"] is not None:
        yield "kv_selector", f"'{parts['kv_selector'].name}' {AGAIN_AND_AGAIN}: leave it out"
    if settings.search.recovered:
        yield "search.recovered", "the hidden states at all depths that it is estimated from take too much memory: leave it out"
    if settings.evaluation.compile:
        yield "evaluation.compile", "a block is run too seldom for it: leave it out"
