"""Weights that hold a NaN or an infinity are found; large ones are no fault."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.errors import PdtrimError
from pdtrim_core.testing import tiny_model

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("values", [(float("nan"),), (float("inf"),), (float("-inf"),), (float("inf"), float("-inf"))], ids=str)
def test_the_first_weight_that_is_not_finite_is_named(values: tuple[float, ...], dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype)
    for name in (WEIGHT, "model.norm.weight"):
        model.model.get_parameter(name).view(-1)[-len(values) :] = torch.tensor(values)
    with pytest.raises(PdtrimError, match=f"the weight {WEIGHT} holds a NaN or an infinity"):
        model.check_finite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (1, -1)], ids=str)
def test_weights_as_large_as_can_be_are_finite(signs: tuple[int, int], dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype)
    most = torch.finfo(dtype).max
    weight = model.model.get_parameter(WEIGHT)
    weight.view(-1)[:] = most * signs[0]
    weight.view(-1)[::2] = most * signs[1]
    model.check_finite()
