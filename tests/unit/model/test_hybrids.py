"""Families whose blocks have states in place of K/V, or beside them, are refused in one line, never by an error of theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pdtrim_core import PdtrimError
from pdtrim_core.model.find_layout import find_layout

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2}
HYBRIDS: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA2, "attn_layer_indices": [1], "attn_rotary_emb": 8},
    "falcon_h1": {**MAMBA2, "head_dim": 16, "mamba_d_ssm": 128},
    "falcon_mamba": {"state_size": 8},
    "granitemoehybrid": {**MAMBA2, "layer_types": ["mamba", "attention", "mamba", "mamba"], "num_local_experts": 0},
    "jamba": {**MIXTURE, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_multiple_of": 32},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "nemotron_h": {
        "hybrid_override_pattern": "M*M-",
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 16,
    },
    "qwen3_next": {
        **MIXTURE,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "recurrent_gemma": {"head_dim": 16, "lru_width": 64, "attention_window_size": 16},
    "rwkv": {"attention_hidden_size": 64},
    "xlstm": {"num_heads": 4},
}
ALL = (0, 1, 2, 3)
WITHOUT_KV = {
    "bamba": (0, 2, 3),
    "falcon_mamba": ALL,
    "granitemoehybrid": (0, 2, 3),
    "jamba": (0, 2),
    "lfm2": (0, 2),
    "mamba": ALL,
    "mamba2": ALL,
    "nemotron_h": (0, 2, 3),
    "qwen3_next": (0, 1, 2),
    "recurrent_gemma": (0, 1, 3),
    "rwkv": ALL,
    "xlstm": ALL,
}
"""The blocks that have a state alone; those of others have one beside their K/V."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HYBRIDS)
def test_hybrids_are_refused_with_the_reason(kind: str) -> None:
    settings = {**SHAPE, **HYBRIDS[kind]}
    config = AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(PdtrimError) as told:
        find_layout(model, f"tiny {kind}")
    blocks = ", ".join(map(str, WITHOUT_KV.get(kind, ())))
    reason = f"its blocks {blocks} hand on no K/V" if blocks else "its blocks keep more than K and V of earlier tokens"
    assert str(told.value).startswith(f"tiny {kind}: {reason}")
    assert "\n" not in str(told.value)
