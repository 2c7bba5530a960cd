"""What a run cannot do with a model some of whose weights found no room where they compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pdtrim_core.api.layer_kinds import Recovery
from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.placement import SAY_INSTEAD
from pdtrim_core.recipe.recipe import Recipe


def check_offloaded(recipe: Recipe, recoveries: Sequence[Recovery], model: BlockModel) -> None:
    """Raise `PdtrimError` where a model is offloaded, and a run has what reads weights or changes them."""
    reading = dict.fromkeys(_reading(recipe, recoveries)) if model.offloaded else {}
    if reading:
        no_room = f"some weights of {model.name} found no room where they compute, and so cannot be read or changed"
        raise PdtrimError(f"{', '.join(reading)}: {no_room}: {SAY_INSTEAD}")


def _reading(recipe: Recipe, recoveries: Sequence[Recovery]) -> Iterator[str]:
    if recipe.pruner is not None:
        yield f"pruner '{recipe.pruner.name}'"
    elif not recipe.scorer.streams:
        # What reads no weights but by running blocks suits models on the disk.
        yield f"scorer '{recipe.scorer.name}'"
    if recipe.pruner is None and recipe.settings.prune.merges:
        yield "prune.merges = true"
    yield from (f"recovery '{recovery.name}'" for recovery in recoveries)
    if recipe.quantizer is not None and recipe.quantizer.formats:
        yield "formats"
