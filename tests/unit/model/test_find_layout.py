"""Blocks and their parts are found by structure, as plugins say them; what no plan fits is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pdtrim_core import PdtrimError, PluginHost
from pdtrim_core.api import BlockLayout
from pdtrim_core.model.find_layout import find_layout
from pdtrim_core.testing import FAMILIES, tiny_transformers

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


def model_of(kind: str, **settings: Any) -> Any:
    """A model on the meta device: what is found is found without weights."""
    config = AutoConfig.for_model(kind, **{**SHAPE, **settings})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def found(kind: str, **settings: Any) -> BlockLayout:
    return find_layout(model_of(kind, **settings), kind)


def refusal_of(kind: str, **settings: Any) -> str:
    with pytest.raises(PdtrimError) as error:
        found(kind, **settings)
    return str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_structure_tells_what_the_built_in_plugin_says(family: str, host: PluginHost) -> None:
    model = tiny_transformers(family)
    assert find_layout(model, family) == host.find_blocks(model, family)


def test_the_nested_text_model_is_found_too(host: PluginHost) -> None:
    config = AutoConfig.for_model("gemma3", text_config={**SHAPE, "num_key_value_heads": 2, "head_dim": 8})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert find_layout(model, "gemma3") == host.find_blocks(model, "gemma3")


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("gpt2", BlockLayout("transformer.h")),
        (
            "gptj rotary_dim=8",
            BlockLayout("transformer.h", ("ln_1", "attn.k_proj", "attn.v_proj"), (), ("mlp.fc_in", "mlp.fc_out")),
        ),
        ("bloom", BlockLayout("transformer.h", (), (), ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"))),
        (
            "phi",
            BlockLayout(
                "model.layers",
                ("input_layernorm", *ATTENTION[1:3]),
                (*ATTENTION[:3], "self_attn.dense"),
                ("mlp.fc1", "mlp.fc2"),
            ),
        ),
        # No norm in front of attention, and norms of Q and K over all heads at once.
        ("olmo2", BlockLayout("model.layers", (), (), ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))),
        # A shared expert is part of an MLP, and no MLP.
        ("qwen2_moe", BlockLayout("model.layers", ("input_layernorm", *ATTENTION[1:3]), ATTENTION)),
    ],
)
def test_parts_are_told_where_they_are_certain(kind: str, layout: BlockLayout) -> None:
    name, _, setting = kind.partition(" ")
    key, _, value = setting.partition("=")
    assert found(name, **({key: int(value)} if key else {})) == layout


def test_a_part_that_only_some_blocks_have_is_none() -> None:
    # One dense block in front of blocks of experts.
    assert found("glm4_moe", first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, head_dim=8).mlp == ()
    assert found("glm4_moe", first_k_dense_replace=4, n_routed_experts=4, num_experts_per_tok=2, head_dim=8).mlp != ()


def test_two_lists_that_run_in_order_are_named() -> None:
    assert refusal_of("xlm", emb_dim=32, n_layers=4, n_heads=4) == (
        "xlm: blocks may be those at transformer.attentions (4 of them) and transformer.layer_norm1 (4 of them) and "
        "transformer.ffns (4 of them) and transformer.layer_norm2 (4 of them), which each run in order: a plugin can say "
        "which with the hook pdtrim_find_blocks"
    )


def test_blocks_that_are_run_again_are_refused() -> None:
    assert refusal_of("hrm_text") == (
        "hrm_text: its architecture has no list of blocks that run once each, in order (model.L_module.layers "
        "does not); it cannot be pruned by blocks"
    )


def test_blocks_that_share_weights_are_refused() -> None:
    model = tiny_transformers("llama")
    model.model.layers[3].mlp = model.model.layers[1].mlp
    with pytest.raises(PdtrimError) as error:
        find_layout(model, "owner/name")
    assert str(error.value) == (
        "owner/name: blocks 1 and 3 share the weight mlp.gate_proj.weight, so that neither can be removed or changed alone; this "
        "architecture cannot be pruned by blocks"
    )


@pytest.mark.parametrize(
    ("kind", "settings", "which"),
    [
        ("mamba", {"state_size": 4}, "0, 1, 2, 3"),
        ("recurrent_gemma", {"head_dim": 8, "lru_width": 32, "attention_window_size": 16}, "0, 1, 3"),
        ("openai-gpt", {}, "0, 1, 2, 3"),
    ],
)
def test_blocks_without_kv_are_named(kind: str, settings: dict[str, Any], which: str) -> None:
    assert refusal_of(kind, **settings) == (
        f"{kind}: its blocks {which} hand on no K/V, as Mamba, linear attention and convolutions do not; no plan for prefill and "
        "decode can hand over what they know"
    )


def test_an_encoder_is_no_decoder() -> None:
    assert refusal_of("bert") == (
        "bert: its blocks let a token see those behind it, so that it has no prefill and decode; this is no decoder (its config "
        "may want is_decoder = true)"
    )
    assert found("bert", is_decoder=True).blocks == "bert.encoder.layer"


class Odd(nn.Module):
    """A model whose own class cannot make a copy of it, and whose forward fails."""

    def __init__(self) -> None:
        super().__init__()
        self.config = AutoConfig.for_model("llama", **SHAPE)
        self.layers = nn.ModuleList([nn.Linear(2, 2)])

    def forward(self, **_given: Any) -> Any:
        raise LookupError("nothing is here")


def test_a_model_that_cannot_be_tried_is_refused_with_the_reason() -> None:
    with pytest.raises(PdtrimError) as error:
        find_layout(Odd(), "owner/name")
    assert str(error.value).startswith(
        "owner/name: no plugin knows where the architecture 'llama' keeps its blocks, and they cannot be"
    )
    assert "(nothing is here" in str(error.value)
    assert str(error.value).endswith("; a plugin can say so with the hook pdtrim_find_blocks")
