from __future__ import annotations

import pytest
import torch

from pdtrim_core.api import FormatFacts
from pdtrim_plugins.quantizers.rtn import RoundToNearest

pytest.importorskip("compressed_tensors", reason="the quantizer rtn takes compressed-tensors, which is not installed")

BITS = {"W8A16": 8, "W4A16": 4}


def weight(rows: int = 8, inputs: int = 64) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheme", BITS)
def test_a_group_is_rounded_to_the_nearest_step_of_its_largest_weight(scheme: str) -> None:
    given = weight()
    made = RoundToNearest(group_size=16)
    found = made.dequantize(made.quantize(given, scheme), scheme)
    groups = given.reshape(8, -1, 16)
    # Symmetric integers of n bits: the largest weight of a group is half of 2^n - 1 steps away from zero.
    step = groups.abs().amax(dim=-1, keepdim=True) / ((2 ** BITS[scheme] - 1) / 2)
    wanted = (groups / step).round().clamp(-(2 ** (BITS[scheme] - 1)), 2 ** (BITS[scheme] - 1) - 1) * step
    assert torch.allclose(found, wanted.reshape(8, 64), atol=1e-6)


def test_smaller_groups_are_nearer() -> None:
    off = []
    for size in (64, 32, 16, 8):
        made = RoundToNearest(group_size=size)
        off.append(float((made.dequantize(made.quantize(weight(), "W4A16"), "W4A16") - weight()).norm()))
    assert off == sorted(off, reverse=True)
    assert len(set(off)) == len(off)


@pytest.mark.parametrize("scheme", ["W8A8", "FP8_DYNAMIC"])
def test_a_format_of_eight_bits_for_both_has_a_scale_for_each_row_and_each_token(scheme: str) -> None:
    made, rows = RoundToNearest(), weight()
    rows[2] *= 1000
    stored = made.quantize(rows, scheme)
    assert stored["weight_scale"].shape == (8, 1)
    found = made.dequantize(stored, scheme)
    assert float((found - rows)[3].norm()) < 0.05 * float(rows[3].norm())  # the long row does not coarsen the others
    assert made.rounds_inputs(scheme)
    rounded = made.round_inputs(rows, scheme)
    assert not torch.equal(rounded, rows)
    assert float((rounded - rows)[3].norm()) < 0.05 * float(rows[3].norm())


def test_the_size_of_groups_is_told_by_the_config() -> None:
    (group,) = RoundToNearest(group_size=32).config("W4A16")["config_groups"].values()
    assert (group["weights"]["num_bits"], group["weights"]["group_size"], group["input_activations"]) == (4, 32, None)
    (whole,) = RoundToNearest(group_size=32).config("W8A8")["config_groups"].values()
    assert whole["weights"]["strategy"] == "channel"


def test_two_sizes_of_groups_do_not_get_in_each_others_way() -> None:
    one, other = RoundToNearest(group_size=32), RoundToNearest(group_size=16)
    assert one.quantize(weight(), "W4A16")["weight_scale"].shape == (8, 2)
    assert other.quantize(weight(), "W4A16")["weight_scale"].shape == (8, 4)
    assert one.quantize(weight(), "W4A16")["weight_scale"].shape == (8, 2)


def told(inputs: dict[str, int], *schemes: str, size: int = 128) -> list[str]:
    return RoundToNearest(group_size=size).problems(FormatFacts("m", "llama", schemes, inputs))


def test_the_advice_divides_all_rows_and_not_only_the_one_that_is_named() -> None:
    (problem,) = told({"q_proj": 576, "down_proj": 1536 + 32}, "W4A16")
    assert problem.endswith("the 576 inputs of q_proj of m, nor those of 1 more layer: set formats.group_size = 32")
    assert told({"q_proj": 576, "down_proj": 1536 + 32}, "W4A16", size=32) == []


def test_formats_without_groups_ask_for_no_size() -> None:
    assert told({"q_proj": 47}, "W8A8", "FP8_DYNAMIC") == []
    assert told({"q_proj": 47}, "W8A8", "W8A16") != []
