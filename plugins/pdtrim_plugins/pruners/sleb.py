"""SLEB: removes one block after the other, each time the one without which the loss is lowest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import Drop, Pruned, Pruner, Removal

if TYPE_CHECKING:
    from pdtrim_core.api import PruneContext, PruneFacts


class Sleb(Pruner):
    """Drops the block without which the next token's loss is lowest, then measures all others again."""

    name = "sleb"
    cites = "SLEB, Algorithm 1 (arXiv:2402.09025)"

    window: int = Field(128, gt=1, description="tokens a window; the paper takes 2048")
    windows: int = Field(16, gt=0, description="windows to measure on, at most")
    early_barrier: int = Field(1, ge=0, description="blocks at the beginning that are never removed")
    latter_barrier: int = Field(1, ge=0, description="blocks at the end that are never removed")

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why the barriers leave too few blocks."""
        barriers = self.early_barrier + self.latter_barrier
        most = max(0, facts.block_count - barriers)
        problem = (
            f"{self.name}: asked to remove {facts.blocks} of the {facts.block_count} blocks, but the barriers keep {barriers}: "
            f"remove at most {most}, or lower early_barrier or latter_barrier"
        )
        return [problem] if facts.blocks > most else []

    def prune(self, context: PruneContext) -> Pruned:
        """Return the removed blocks; ties go to the lower block. Raises `PdtrimError` where barriers leave too few."""
        self.check(context.facts)
        there = context.model.block_count
        if context.blocks == 0:
            return Pruned(Removal())
        loss = context.loss_of(context.windows(self.window, self.windows))
        removal, steps = Removal(), []
        for _ in range(context.blocks):
            free = [block for block in range(self.early_barrier, there - self.latter_barrier) if not removal.at(block)]
            losses = {block: loss(removal.with_(Drop(block))) for block in free}
            block = min(losses, key=losses.__getitem__)
            removal = removal.with_(Drop(block))
            steps.append(f"block {block} (loss {losses[block]:.4f})")
        context.note(f"{self.name} removed {', then '.join(steps)}")
        return Pruned(removal)
