"""Round to nearest: no data, no training, the tensors of compressed-tensors."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pdtrim_core.api import FormatFacts, Quantizer

if TYPE_CHECKING:
    from torch import Tensor

NOT_INSTALLED = "it takes compressed-tensors, which is not installed: pip install 'pdtrim-core[formats]'"
GROUPED = ("W4A16", "W8A16")
"""Formats that have a scale for each group of a row; the others have one for each row."""
GROUP_SIZE = 128
LEAST_GROUP = 8
"""A group of fewer weights has so many scales that little is saved."""


class RoundToNearest(Quantizer):
    """Rounds each weight to the nearest number of a format; what it is computed from is the weight alone.

    The formats are presets of compressed-tensors, which transformers and vLLM load. W8A16 and W4A16 have integers of 8 and 4 bits
    with a scale for each group of a row, and compute in the model's number format. W8A8 (8-bit integers) and FP8_DYNAMIC (8-bit
    floating point, e4m3) have a scale for each row, and quantise what a layer is given too, token by token. All are symmetric.
    """

    name = "rtn"
    cites = "Nagel et al., arXiv 2106.08295"

    schemes = ("W8A16", "W4A16", "W8A8", "FP8_DYNAMIC")

    group_size: int = Field(
        GROUP_SIZE,
        ge=LEAST_GROUP,
        description="weights of a row that share a scale, of W8A16 and W4A16; it must divide every row",
    )

    def problems(self, facts: FormatFacts) -> list[str]:
        """Return whether what it takes is missing, and which layers the groups do not divide."""
        found = [] if find_spec("compressed_tensors") is not None else [NOT_INSTALLED]
        uneven = {name: inputs for name, inputs in facts.inputs.items() if inputs % self.group_size}
        if uneven and any(scheme in GROUPED for scheme in facts.schemes):
            name, inputs = next(iter(uneven.items()))
            common = math.gcd(*facts.inputs.values())
            sizes = [size for size in (256, 128, 64, 32, 16, 8) if common % size == 0]
            advice = f"set formats.group_size = {sizes[0]}" if sizes else "choose W8A8 or FP8_DYNAMIC, which have no groups"
            rest = len(uneven) - 1
            more = f", nor those of {rest} more layer{'s' * (rest > 1)}" if rest else ""
            what = f"{inputs} inputs of {name} of {facts.model}{more}"
            found.append(f"groups of {self.group_size} weights do not divide the {what}: {advice}")
        return found

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        """Return the rounded weights, packed where they have 4 or 8 bits without inputs of that kind, and their scales."""
        from compressed_tensors.quantization.utils import calculate_qparams  # noqa: PLC0415 - listings do without

        found = self._scheme(scheme)
        groups = weight.reshape(len(weight), -1, self.group_size) if scheme in GROUPED else weight[:, None]
        scale, zero = calculate_qparams(groups.amin(dim=-1), groups.amax(dim=-1), found.weights)
        given = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        return {name: tensor.contiguous() for name, tensor in self._compressor(scheme).compress(given, found).items()}

    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        """Return the rounded weights times their scales."""
        found: Tensor = self._compressor(scheme).decompress(dict(stored), self._scheme(scheme))["weight"]
        return found

    def rounds_inputs(self, scheme: str) -> bool:
        """Tell whether it is one of the formats of 8 bits for both."""
        return scheme not in GROUPED

    def round_inputs(self, inputs: Tensor, scheme: str) -> Tensor:
        """Return inputs rounded with a scale for each token."""
        from compressed_tensors.quantization.lifecycle.forward import fake_quantize  # noqa: PLC0415 - listings do without
        from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp  # noqa: PLC0415 - the same

        args = self._scheme(scheme).input_activations
        # It takes the first two dimensions for those of a batch and its tokens.
        rows = inputs.reshape(1, -1, inputs.shape[-1])
        scale, zero = compute_dynamic_scales_and_zp(rows, args, None)
        rounded: Tensor = fake_quantize(rows, scale, zero, args)
        return rounded.view(inputs.shape)

    def config(self, scheme: str) -> dict[str, Any]:
        """Return the config of compressed-tensors for checkpoints whose linear layers all have a format."""
        from compressed_tensors.quantization import QuantizationConfig  # noqa: PLC0415 - listings do without

        made = QuantizationConfig(
            config_groups={"group_0": self._scheme(scheme)},
            format=self._format(scheme),
            quantization_status="compressed",
            ignore=[],
        )
        found: dict[str, Any] = json.loads(json.dumps(made.to_dict(), default=str))
        return found

    def _scheme(self, name: str) -> Any:
        return _preset(name, self.group_size if name in GROUPED else None)

    def _format(self, scheme: str) -> str:
        from compressed_tensors.compressors.format import infer_module_format  # noqa: PLC0415 - listings do without
        from torch import nn  # noqa: PLC0415 - the same

        return str(infer_module_format(nn.Linear, self._scheme(scheme)).value)

    def _compressor(self, scheme: str) -> Any:
        from compressed_tensors.compressors import BaseCompressor  # noqa: PLC0415 - listings do without

        return BaseCompressor.get_value_from_registry(self._format(scheme))


@functools.cache
def _preset(name: str, group_size: int | None) -> Any:
    """Return what compressed-tensors calls a format; it is asked for with every layer that rounds its inputs."""
    from compressed_tensors.quantization import preset_name_to_scheme  # noqa: PLC0415 - listings do without

    scheme = preset_name_to_scheme(name, ["Linear"])
    if group_size is not None:
        scheme.weights.group_size = group_size
    return scheme
