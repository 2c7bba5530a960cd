"""A model as blocks: what stands behind the last one."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.api import BlockLayout, BlockModel
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
def test_logits_in_memory_that_is_used_again_are_those_in_memory_of_their_own(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    monkeypatch.setattr("pdtrim_core.model.block_model.HEAD_NUMBERS", 2 * model.config.vocab_size)
    stream_ND = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    places, starts = set(), []

    def seen(logits_NV: torch.Tensor, start: int) -> tuple[torch.Tensor]:
        places.add(logits_NV.data_ptr())
        starts.append(start)
        return (logits_NV.float().clone(),)

    with torch.inference_mode():
        kept = torch.cat(list(model.logits(stream_ND)))
        found = torch.cat([part for (part,) in model.map_logits(stream_ND, seen)])
    assert torch.equal(found, kept)
    assert starts == [0, 2, 4]
    # Families that scale or cap their logits do so behind the head, in memory of its own.
    assert len(places) == 1 or family in {"cohere", "gemma2", "gemma3", "granite"}
    assert "forward" not in vars(model.model.get_output_embeddings())


def test_what_is_kept_of_logits_is_never_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr("pdtrim_core.model.block_model.HEAD_NUMBERS", 2 * model.config.vocab_size)
    stream_ND = torch.randn(6, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        kept = torch.cat(list(model.logits(stream_ND)))
        parts = model.map_logits(stream_ND, lambda logits_NV, start: (logits_NV, logits_NV[-1:]))
        model.map_logits(-stream_ND, lambda logits_NV, start: (logits_NV,))
    assert torch.equal(torch.cat([whole for whole, _ in parts]), kept)
    assert torch.equal(torch.cat([last for _, last in parts]), kept[1::2])


def test_logits_may_be_asked_for_while_others_are_looked_at() -> None:
    model = tiny_model("llama")
    stream_ND = torch.randn(3, model.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def gap(logits_NV: torch.Tensor, start: int) -> tuple[torch.Tensor]:
        ((other_NV,),) = model.map_logits(-stream_ND, lambda inner_NV, at: (inner_NV,))
        return (logits_NV - other_NV,)

    with torch.inference_mode():
        ((found,),) = model.map_logits(stream_ND, gap)
        (ours,), (others,) = model.logits(stream_ND), model.logits(-stream_ND)
    assert torch.equal(found, ours - others)


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
        ((found,),) = model.map_logits(stream_ND, lambda logits_NV, start: (logits_NV,))
        (expected,) = model.logits(stream_ND)
    assert torch.equal(found, expected)
    assert found.requires_grad == (change == "with gradients")
    assert len(calls) == (2 if change == "wrapped" else 0)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo"])
def test_what_stands_behind_the_last_block_is_not_run_while_calls_are_recorded(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    # These give the output of their last block the shape of their input.
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 260}
    kinds = {"attention_types": [[["global"], 2]]} if kind == "gpt_neo" else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **kinds))
    blocks = BlockModel(model, None, BlockLayout("transformer.h"), name=kind)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.inference_mode():
        recording = blocks.record(ids)
        hidden = recording.hidden_BTD
        for index in range(2):
            hidden = blocks.run(index, hidden, recording.calls)
        (found,) = blocks.logits(hidden[:, -1])
        expected = model(input_ids=ids, use_cache=False).logits[:, -1]
    assert torch.allclose(found, expected, atol=1e-5)
