"""A model as blocks: what stands behind the last one."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.testing import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_norm_is_the_models_own(family: str) -> None:
    model, ids_BT = tiny_model(family), torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    with torch.inference_mode():
        recording = model.record(ids_BT)
        hidden_BTD = recording.hidden_BTD
        for block in range(model.block_count):
            hidden_BTD = model.run(block, hidden_BTD, recording.calls)
        normed_ND = model.normed(hidden_BTD.flatten(0, 1))
        expected = model.model(ids_BT, output_hidden_states=True, use_cache=False).hidden_states[-1]
    assert torch.allclose(normed_ND.view(expected.shape), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(hidden_BTD, expected, rtol=1e-2)
