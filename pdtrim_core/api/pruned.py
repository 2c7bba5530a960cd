"""What a pruner returns; free of torch, so that listings need none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pdtrim_core.plan.elements import Merge, Removal, Shrink
from pdtrim_core.plan.plan import Plan

if TYPE_CHECKING:
    from torch import nn

    from pdtrim_core.model.block_model import BlockModel
    from pdtrim_core.plan.costs import ModelSizes


@dataclass(frozen=True)
class Pruned:
    """What a pruner found: a removal of drops, of blocks or their parts, of merges and of shrinks, or a whole other model.

    `modules` has the merged block of each merge, and for a shrink the projection out of its part, where that is not the dense
    one less the columns of its units. `block_scores` is one number a block where the method has some; higher is safer to
    remove. `replaced` is the other model of a pruner whose class says `replaces_model`; the other fields are then empty. Its
    blocks and its hidden states may have other sizes than those of the dense model, whose tokenizer it keeps.
    """

    removal: Removal = field(default_factory=Removal)
    modules: Mapping[Merge | Shrink, nn.Module] = field(default_factory=dict)
    block_scores: tuple[float, ...] = ()
    replaced: BlockModel | None = None

    def kept_parameters(self, dense: ModelSizes) -> int:
        """Return how many parameters decode keeps of a dense model of these sizes, tied weights once."""
        if self.replaced is not None:
            return self.replaced.sizes.parameters
        return dense.kept_parameters(Plan.unified(self.removal), "decode")
