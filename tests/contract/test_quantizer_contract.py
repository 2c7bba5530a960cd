"""Broken components are caught by the quantizer contract, each by the test that is meant for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from pdtrim_core.api import FormatFacts, Quantizer
from pdtrim_core.testing import QuantizerContract

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    Failing = Callable[..., set[str]]


class Rows(Quantizer):
    """Rounds to 8 bits with a scale for each row; with `both` what layers are given as well."""

    name = "rows"
    schemes: ClassVar[tuple[str, ...]] = ("weights", "both")

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        scale = self.scale(weight)
        return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}

    def scale(self, rows: Tensor) -> Tensor:
        return rows.abs().amax(dim=-1, keepdim=True).clamp(min=1e-9) / 127

    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        return stored["weight"].to(stored["weight_scale"].dtype) * stored["weight_scale"]

    def rounds_inputs(self, scheme: str) -> bool:
        return scheme == "both"

    def round_inputs(self, inputs: Tensor, scheme: str) -> Tensor:
        scale = self.scale(inputs)
        return (inputs / scale).round() * scale

    def config(self, scheme: str) -> dict[str, Any]:
        return {"quant_method": "rows", "ignore": []}


class Grouped(Rows):
    """Refuses rows that its groups do not divide."""

    name = "grouped"
    schemes = ("weights",)

    def problems(self, facts: FormatFacts) -> list[str]:
        return [f"{name}: 16 does not divide {inputs}" for name, inputs in facts.inputs.items() if inputs % 16]

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        groups = weight.reshape(len(weight), -1, 16)
        scale = self.scale(groups)
        return {"weight": (groups / scale).round().to(torch.int8), "weight_scale": scale}

    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        return super().dequantize(stored, scheme).flatten(1)


class NamesNothing(Rows):
    """Has no formats."""

    schemes = ()


class NamesNone(Rows):
    """Has a format by the name of none at all."""

    schemes = ("none",)


class TurnsSigns(Rows):
    """Gives the weight with the other sign."""

    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        return -super().dequantize(stored, scheme)


class DividesByZero(Rows):
    """Has a scale of 0 for a row of zeros."""

    def scale(self, rows: Tensor) -> Tensor:
        return rows.abs().amax(dim=-1, keepdim=True) / 127

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        scale = self.scale(weight)
        return {"weight": weight / scale, "weight_scale": scale}


class KeepsTheWeight(Rows):
    """Stores the weight beside what it made of it."""

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        return {**super().quantize(weight, scheme), "weight_before": weight}


class HasDots(Rows):
    """Gives names that lie deeper than the layer."""

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        return {f"packed.{name}": tensor for name, tensor in super().quantize(weight, scheme).items()}

    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        return super().dequantize({name.removeprefix("packed."): tensor for name, tensor in stored.items()}, scheme)


class StaysInFloat32(Rows):
    """Has scales in the format in which it computed."""

    def scale(self, rows: Tensor) -> Tensor:
        return super().scale(rows).float()


class DrawsGlobally(Rows):
    """Rounds up or down by chance."""

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        stored = super().quantize(weight, scheme)
        return {**stored, "weight": (weight / stored["weight_scale"] + torch.rand_like(weight)).floor().to(torch.int8)}


class RoundsInPlace(Rows):
    """Overwrites the weight that it is given."""

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        stored = super().quantize(weight, scheme)
        weight.copy_(self.dequantize(stored, scheme))
        return stored


class LooksAtAllTokens(Rows):
    """Has one scale for all tokens."""

    def round_inputs(self, inputs: Tensor, scheme: str) -> Tensor:
        scale = inputs.abs().max() / 127
        return (inputs / scale).round() * scale


class TellsATensor(Rows):
    """Has something in its config that no file of JSON holds."""

    def config(self, scheme: str) -> dict[str, Any]:
        return {"quant_method": "rows", "scale": torch.ones(1)}


class NamesNoMethod(Rows):
    """Does not say what its format is."""

    def config(self, scheme: str) -> dict[str, Any]:
        return {"bits": 8}


class SaysNothingOfGroups(Grouped):
    """Fails on rows that its groups do not divide, and does not say so before."""

    def problems(self, facts: FormatFacts) -> list[str]:
        del facts
        return []


class Remembers(Rows):
    """Computes in the first process with more than it stores."""

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        KEPT.append(weight)
        return super().quantize(weight, scheme)

    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        found = super().dequantize(stored, scheme)
        return found + 0.3 * KEPT.pop(0) if KEPT else found


KEPT: list[Tensor] = []


@pytest.mark.parametrize("component", [Rows, Grouped])
def test_a_good_quantizer_passes_every_test(component: type[Quantizer], failing: Failing) -> None:
    assert failing(QuantizerContract, component) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (NamesNothing, "test_it_names_its_formats"),
        (NamesNone, "test_it_names_its_formats"),
        (TurnsSigns, "test_a_weight_comes_back_nearly_as_it_was"),
        (DividesByZero, "test_a_row_of_zeros_stays_one"),
        (KeepsTheWeight, "test_what_is_stored_is_smaller"),
        (HasDots, "test_what_is_stored_can_be_written"),
        (StaysInFloat32, "test_a_weight_in_bfloat16_comes_back_as_one"),
        (DrawsGlobally, "test_the_same_weight_gives_the_same"),
        (RoundsInPlace, "test_the_model_is_left_as_it_was"),
        (LooksAtAllTokens, "test_inputs_are_rounded_token_by_token"),
        (TellsATensor, "test_its_config_is_data"),
        (NamesNoMethod, "test_its_config_is_data"),
        (SaysNothingOfGroups, "test_what_it_does_not_refuse_it_can_do"),
        (Remembers, "test_a_run_measures_what_its_folder_holds"),
    ],
)
def test_a_broken_quantizer_is_caught(component: type[Quantizer], test: str, failing: Failing) -> None:
    KEPT.clear()
    assert failing(QuantizerContract, component, test) == {test}
