"""Where a family of models keeps its blocks, and what a block is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockLayout:
    """Where a family keeps its list of blocks: the path of the module list, such as "model.layers".

    `kv` names the parts of a block that K and V are made with (the norm in front, the two projections, their norms);
    empty where a family has one projection for all three of Q, K and V. `attention` names the projections of Q, K and V and
    the one behind attention, `mlp` those into the channels and the one out of them; empty where they are fused or experts.
    """

    blocks: str
    kv: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
