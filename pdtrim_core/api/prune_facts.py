"""What a pruner can know before the weights are read: the sizes that the model's config gives, and the budget."""

from __future__ import annotations

from dataclasses import dataclass

from pdtrim_core.plan.costs import ModelSizes


@dataclass(frozen=True)
class PruneFacts:
    """A model's sizes and the budget, for what a pruner cannot do whatever the weights are.

    `model` is the model's name in messages, `family` the `model_type` of its config. `sizes.blocks` has for each block the
    `units` of the parts that can be narrowed. `blocks` is how many blocks are to go, `parameters` the same budget in weights.
    """

    model: str
    family: str
    sizes: ModelSizes
    blocks: int
    parameters: int

    @property
    def block_count(self) -> int:
        """The number of blocks that the model has."""
        return len(self.sizes.blocks)
