"""Blocks that are gone, made up for by the projection in front of them.

Shape suffixes: N tokens, D hidden, F channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pdtrim_core.api import LayerRecovery, RecoveryFacts
from pdtrim_plugins.recoveries.least_squares import RidgeSums

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import Layer, RecoveryContext, Stage, WalkedLayer


class Fold(LayerRecovery):
    """Makes up for a run of blocks that are gone by the projection in front of them, in closed form; the pair runs as before.

    Let c be the channels of the MLP of the last layer in front of the run, W its last projection, y what W c is added to, and h
    the dense model's hidden states behind the run. The new W minimises |W c - (h - y)|^2 over tokens, with a pull towards the old
    one. With `fit = "map"` it is the old one behind a linear map T, which minimises |T m - (h - y)|^2 for m = W c. Runs are
    folded from shallow to deep, each on the hidden states that the stage really has by then. It departs from ReplaceMe, whose map
    it is, in that each stage has its own tokens, decode's being those behind a prompt whose K/V prefill has made, and in fitting
    all of W.
    """

    name = "fold"
    cites = "Shopkhoev et al., ReplaceMe, 2025 (arXiv:2505.02819)"

    stage: Literal["decode", "prefill", "both"] = Field("both", description="the stage whose layers get other weights")
    fit: Literal["map", "projection"] = Field(
        "projection",
        description="projection: the weights of the last projection in front of a run, fitted to the channels that it is given; "
        "map: a map of what it gives, which is folded into it: fewer numbers to find",
    )
    ridge: float = Field(
        0.1,
        gt=0,
        description="pull towards changing nothing, as a share of the mean square of the channels, or of what the MLP gives",
    )

    def problems(self, facts: RecoveryFacts) -> list[str]:
        """Return why no run of blocks of this family can be folded."""
        if not facts.layout.mlp:
            what = "the projections of its MLP are fused or belong to experts, so there is none into which a map could be folded"
            return [f"{facts.model} ({facts.family}): {what}"]
        return []

    def stages(self) -> tuple[Stage, ...]:
        """Return prefill, whose K/V decode then reads, and decode."""
        return ("prefill", "decode") if self.stage == "both" else (self.stage,)

    def wants(self, stage: Stage, layer: Layer, gone: range) -> bool:
        """Want the layers in front of a run."""
        del stage
        return layer.runs and bool(gone)

    def recover(self, context: RecoveryContext) -> None:
        """Fold the runs of each stage; say of one at the beginning of the model that nothing is in front of it, and of parts."""
        for stage in self.stages():
            first = next((layer.block for layer in context.layers(stage) if layer.runs), 0)
            if context.unified and stage == "prefill":
                continue
            parts = sorted(layer.block for layer in context.layers(stage) if layer.lost)
            if parts:
                what = f"fold of {stage}'s blocks without attention or MLP ({', '.join(map(str, parts))})"
                context.note(f"{what}: only whole blocks are made up for, so these parts are not")
            if first:
                context.note(f"{_run(stage, range(first))}: no block is left in front of them, so they are not folded")
        super().recover(context)

    def weights(self, layer: WalkedLayer) -> dict[str, Tensor]:
        """Return the projection in front of a run with the map in it; none, and a note, where there is no place for one."""
        run, name = _run(layer.stage, layer.gone), layer.layout.mlp[-1]
        if not layer.adds_what_it_makes():
            why = f"what {name} gives is not added to the hidden states as it is (a norm or a factor stands between)"
            why = "there is no MLP" if layer.layer.lost == "mlp" else why
            layer.note(f"{run}: in block {layer.layer.blocks[-1]} in front of them, {why}, so they are not folded")
            return {}
        out, sums = layer.module.get_submodule(name), RidgeSums()
        for tokens in layer.tokens():
            sums.add(tokens.made_ND if self.fit == "map" else tokens.channels_NF, tokens.wanted_ND - tokens.after_ND)
        weight_DF, bias_D = out.get_parameter("weight"), getattr(out, "bias", None)
        more = sums.solved(self.ridge, run)
        if self.fit == "projection":
            return {f"{name}.weight": (weight_DF.double() + more.T).to(weight_DF.dtype)}
        folded = {f"{name}.weight": (weight_DF.double() + more.T @ weight_DF.double()).to(weight_DF.dtype)}
        if bias_D is not None:
            folded[f"{name}.bias"] = (bias_D.double() + bias_D.double() @ more).to(bias_D.dtype)
        return folded


def _run(stage: Stage, gone: range) -> str:
    """Return a run of blocks in words."""
    return f"fold of {stage}'s block{'s' * (len(gone) != 1)} {', '.join(map(str, gone))}"
