"""The number format of a tensor is found by its name, whatever its block is called now."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.model.dtypes import pattern_of, stored_as
from pdtrim_core.testing import tiny_llama

DTYPES = {"": "bfloat16", "layers.*.norm.weight": "float32", "model.embed.weight": "float16"}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("model.layers.12.mlp.experts.3.w1.weight", "model.layers.*.mlp.experts.*.w1.weight"), ("h.0", "h.*"), ("w2.b3", "w2.b3")],
)
def test_numbers_of_blocks_and_experts_do_not_count(name: str, pattern: str) -> None:
    assert pattern_of(name) == pattern


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.7.norm.weight", "float32"),
        ("layers.7.norm.weight", "float32"),
        ("embed.weight", "float16"),
        ("model.layers.7.other_norm.weight", "bfloat16"),
        ("model.layers.7.norm.bias", "bfloat16"),
        ("", "bfloat16"),
    ],
)
def test_a_name_may_lack_its_first_part(name: str, dtype: str) -> None:
    assert stored_as(name, DTYPES) == dtype


def test_what_is_unknown_is_stored_as_it_is_computed_with() -> None:
    assert stored_as("model.norm.weight", {}) is None
    model = tiny_llama(dtype=torch.float16)
    assert (model.dtype, model.stored_dtype("lm_head.weight")) == (torch.float16, torch.float16)
