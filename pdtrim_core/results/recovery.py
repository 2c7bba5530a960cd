"""What recovery did to a pair, as its outcome has it."""

from __future__ import annotations

from dataclasses import dataclass

from pdtrim_core.results.task_results import Metric


@dataclass(frozen=True)
class RecoveryResult:
    """One recovery of a run: how far the pair was from the dense model before and after it, in nats a token.

    That is KL(dense || pair) on texts like those that it was computed from, but not these; `by_position_before` and
    `by_position_after` have it by the place of the token behind the prompt. `texts` and `tokens` are what it was computed from.
    `changed` counts the weights that it changed in each stage. `losses` are those of a training, step by step or thinned out.
    `kept` is False where the pair came no nearer, so that all was put back.
    """

    name: str
    before: Metric
    after: Metric
    texts: int
    tokens: int
    seconds: float
    kept: bool
    changed: dict[str, int]
    losses: tuple[float, ...] = ()
    by_position_before: tuple[float, ...] = ()
    by_position_after: tuple[float, ...] = ()

    @property
    def taken_away(self) -> float | None:
        """The share of the distance to the dense model that went, as a fraction of 1; None where there was none."""
        return 1 - self.after.value / self.before.value if self.before.value > 0 else None
