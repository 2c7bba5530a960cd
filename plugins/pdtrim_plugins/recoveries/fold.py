"""Blocks that are gone, made up for by a linear map that is folded into the projection in front of them.

Shape suffixes: N tokens, D hidden, F channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pdtrim_core.api import Recovery, RecoveryFacts
from pdtrim_plugins.recoveries.least_squares import RidgeSums

if TYPE_CHECKING:
    from pdtrim_core.api import RecoveryContext, Stage, WalkedLayer


class Fold(Recovery):
    """Makes up for a run of blocks that are gone by a linear map, in closed form, at no cost when the pair runs.

    Let m be what the MLP of the last layer in front of the run gives, y what it is added to, and h the dense model's hidden
    states behind the run. The map T minimises |m T - (h - y)|^2 + ridge |T - 1|^2 over tokens, and the projection W that gave m
    becomes T^T W. Runs are folded from shallow to deep, each on the hidden states that the stage really has by then. It departs
    from ReplaceMe in that each stage has its own tokens: decode's are those behind a prompt whose K/V prefill has made.
    """

    name = "fold"
    cites = "Shopkhoev et al., ReplaceMe, 2025 (arXiv:2505.02819)"

    stage: Literal["decode", "prefill", "both"] = Field("both", description="the stage whose layers get other weights")
    ridge: float = Field(
        1e-2, gt=0, description="pull of the map towards doing nothing, as a share of the mean square of what the MLP gives"
    )

    def problems(self, facts: RecoveryFacts) -> list[str]:
        """Return why no run of blocks of this family can be folded."""
        if not facts.layout.mlp:
            what = "the projections of its MLP are fused or belong to experts, so there is none into which a map could be folded"
            return [f"{facts.model} ({facts.family}): {what}"]
        return []

    def recover(self, context: RecoveryContext) -> None:
        """Fold the runs of prefill, whose K/V decode then reads, and those of decode."""
        stages = list(self._stages(context))
        for number, stage in enumerate(stages):
            first = next((layer.block for layer in context.layers(stage) if layer.runs), 0)
            if first:
                context.note(f"{_run(stage, range(first))}: no block is left in front of them, so they are not folded")
            for layer in context.walk(stage, (number, len(stages))):
                if layer.gone and layer.layer.runs:
                    self._fold(layer, context)

    def _stages(self, context: RecoveryContext) -> Iterator[Stage]:
        if self.stage != "decode" and not context.unified:
            yield "prefill"
        if self.stage != "prefill" or context.unified:
            yield "decode"

    def _fold(self, layer: WalkedLayer, context: RecoveryContext) -> None:
        import torch  # noqa: PLC0415 - listings must not import torch

        run, name = _run(layer.stage, layer.gone), context.model.layout.mlp[-1]
        if not layer.adds_what_it_makes():
            why = f"what {name} gives is not added to the hidden states as it is (a norm or a factor stands between)"
            context.note(f"{run}: in block {layer.layer.blocks[-1]} in front of them, {why}, so they are not folded")
            return
        out = layer.module.get_submodule(name)
        sums = RidgeSums()
        for tokens in layer.tokens():
            sums.add(tokens.made_ND, tokens.wanted_ND - tokens.after_ND + tokens.made_ND)
        weight_DF = out.get_parameter("weight")
        map_DD = sums.solved(torch.eye(len(weight_DF), device=weight_DF.device), self.ridge, run)
        folded = {f"{name}.weight": (map_DD.T @ weight_DF.double()).to(weight_DF.dtype)}
        bias_D = getattr(out, "bias", None)
        if bias_D is not None:
            folded[f"{name}.bias"] = (bias_D.double() @ map_DD).to(bias_D.dtype)
        layer.change(folded)


def _run(stage: Stage, gone: range) -> str:
    """Return a run of blocks in words."""
    return f"fold of {stage}'s block{'s' * (len(gone) != 1)} {', '.join(map(str, gone))}"
