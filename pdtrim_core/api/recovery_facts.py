"""What a recovery can know before the weights are read."""

from __future__ import annotations

from dataclasses import dataclass

from pdtrim_core.model.block_layout import BlockLayout


@dataclass(frozen=True)
class RecoveryFacts:
    """The model's name in messages, its `model_type`, and which projections its blocks are made of."""

    model: str
    family: str
    layout: BlockLayout
