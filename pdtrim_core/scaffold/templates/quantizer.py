"""A quantizer: gives the linear layers of a stage another number format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pdtrim_core.api import FormatFacts, Quantizer, hookimpl

if TYPE_CHECKING:
    # It loads torch, which listings do without.
    from torch import Tensor


class Example(Quantizer):
    """Rounds weights to 8-bit integers with a scale for each row, which is a little smaller than the largest weight asks for."""

    name = "example"
    schemes = ("W8",)

    clip: float = Field(0.98, gt=0, le=1, description="share of a row's largest weight that is still told apart")

    def problems(self, facts: FormatFacts) -> list[str]:
        """Return why such layers cannot have a format; it is asked before the weights are read."""
        short = [name for name, inputs in facts.inputs.items() if inputs < 2]
        return [f"a row of one weight, in {short[0]} of {facts.model}, gets no smaller"] if short else []

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        """Return what a checkpoint has in place of a weight `[outputs, inputs]`."""
        del scheme
        # A row of zeros has a scale, too.
        scale = (self.clip * weight.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-9)
        return {"weight": (weight / scale).round().clamp(-127, 127).char(), "weight_scale": scale}

    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        """Return the weight that is computed with, in the number format that was given."""
        del scheme
        return stored["weight"].to(stored["weight_scale"].dtype) * stored["weight_scale"]

    def config(self, scheme: str) -> dict[str, Any]:
        """Return what the config of a checkpoint says, for those who load it: here in the words of compressed-tensors."""
        del scheme
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
        return {
            "quant_method": "compressed-tensors",
            "format": "naive-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": [],
        }


@hookimpl
def pdtrim_quantizers() -> Iterable[type[Quantizer]]:
    """Yield the quantizers of this package."""
    yield Example
