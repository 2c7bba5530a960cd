"""What a block is given beside the hidden states, in another number format."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.model.block_calls import Call
from pdtrim_core.testing import tiny_model


def test_floating_tensors_change_their_format_wherever_they_lie_and_nothing_else_does() -> None:
    truth, whole, half = torch.ones(2, dtype=torch.bool), torch.arange(2), torch.ones(2, dtype=torch.bfloat16)
    call = Call(
        (half, [half, 1]), {"mask": truth, "at": whole, "angles": (half, half), "none": None, "name": "x"}, by_keyword=True
    )
    wide = call.to(torch.float32)
    first, (second, one) = wide.args
    assert {first.dtype, second.dtype, *(angle.dtype for angle in wide.kwargs["angles"])} == {torch.float32}
    assert (one, wide.kwargs["none"], wide.kwargs["name"], wide.by_keyword) == (1, None, "x", True)
    assert wide.kwargs["mask"] is truth
    assert wide.kwargs["at"] is whole
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_call_in_the_format_that_it_has_holds_the_same_tensors(family: str, attention: str) -> None:
    model = tiny_model(family, attn_implementation=attention)
    for call in model.record(torch.zeros((2, 5), dtype=torch.long)).calls:
        same = call.to(torch.float32)
        assert all(same.kwargs[name] is value for name, value in call.kwargs.items() if not isinstance(value, tuple))
        angles = call.kwargs.get("position_embeddings") or ()
        assert all(one is other for one, other in zip(angles, same.kwargs.get("position_embeddings") or (), strict=True))
