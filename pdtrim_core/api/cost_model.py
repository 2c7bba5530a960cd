"""What a plan costs on a model: all that a splitter needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.costs import ModelSizes
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.plan import Plan

if TYPE_CHECKING:
    from pdtrim_core.model.block_model import BlockModel


@dataclass(frozen=True)
class CostModel:
    """What a plan costs on a model of so many blocks, as shares of what the dense model costs.

    With `truncated_prefill` prefill computes nothing behind the last K/V that decode reads, and what it leaves out there costs
    nothing. `model` is the dense model for a splitter that says `needs_model`, to time it; None for all others. For one that
    says `sees_routers`, `look_at_prompts` calls a function with what the routers of the dense model choose for the tokens that
    prefill runs, as `RoutedTokens`.
    """

    block_count: int
    sizes: ModelSizes | None = field(default=None, repr=False)
    truncated_prefill: bool = False
    model: BlockModel | None = field(default=None, repr=False)
    look_at_prompts: Callable[[Callable[[Any], None]], None] | None = field(default=None, repr=False, compare=False)

    def cost(self, plan: Plan, stage: Stage) -> float:
        """Return a stage's cost as a share of the dense model's: FLOPs of prefill, weight bytes a token of decode.

        Raises `PdtrimError` where the sizes of the model are not known.
        """
        if self.sizes is None:
            raise PdtrimError("this cost model was made without the model's sizes, so costs are unknown")
        return self.sizes.cost(plan.truncated_prefill(self.block_count) if self.truncated_prefill else plan, stage)
