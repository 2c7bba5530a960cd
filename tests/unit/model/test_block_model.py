"""A model as blocks: what stands behind the last one."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.testing import FAMILIES, tiny_model

pytestmark = pytest.mark.numeric


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


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_that_overwrite_each_other_are_those_that_do_not(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    monkeypatch.setattr("pdtrim_core.model.block_model.HEAD_NUMBERS", 2 * model.config.vocab_size)
    stream_ND = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        kept = torch.cat(list(model.logits(stream_ND)))
        found = torch.cat([part.float().clone() for part in model.head(stream_ND)])
        places = {part.data_ptr() for part in model.head(stream_ND[:4])}
    assert torch.equal(found, kept)
    # Families that scale or cap their logits do so behind the head, in memory of its own.
    assert len(places) == 1 or family in {"cohere", "gemma2", "gemma3", "granite"}
    assert "forward" not in vars(model.model.get_output_embeddings())


@pytest.mark.parametrize("change", ["wrapped", "biased", "with gradients"])
def test_a_head_that_is_no_plain_product_is_left_alone(change: str) -> None:
    model = tiny_model("llama")
    head = model.model.get_output_embeddings()
    calls: list[int] = []
    if change == "wrapped":
        plain = head.forward

        def counted(hidden: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            found: torch.Tensor = plain(hidden)
            return found

        vars(head)["forward"] = counted
    if change == "biased":
        head.bias = torch.nn.Parameter(torch.ones(head.out_features), requires_grad=False)
    stream_ND = torch.randn(3, model.config.hidden_size, requires_grad=change == "with gradients")
    with torch.set_grad_enabled(change == "with gradients"):
        (found,) = model.head(stream_ND)
        (expected,) = model.logits(stream_ND)
    assert torch.equal(found, expected)
    assert found.requires_grad == (change == "with gradients")
    assert len(calls) == (2 if change == "wrapped" else 0)
