"""Tiny mixtures of experts of seven families, and what their routers choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pdtrim_core.host.host import load_plugins
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.experts import Experts
from pdtrim_core.model.small_config import made_of
from pdtrim_core.testing import ByteTokenizer

BLOCKS, EXPERTS = 4, 8
_COMMON = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "num_experts_per_tok": 2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_SMALL = {**_COMMON, "moe_intermediate_size": 24}
# K and V of DeepSeek come from a narrow projection; its first block has no experts.
_LATENT = {
    **_SMALL,
    "num_key_value_heads": 4,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "n_group": 1,
    "topk_group": 1,
}
SHAPES: dict[str, dict[str, Any]] = {
    "mixtral": {**_COMMON, "num_local_experts": EXPERTS},
    "qwen2_moe": {**_SMALL, "num_experts": EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**_SMALL, "num_experts": EXPERTS, "head_dim": 8, "mlp_only_layers": [2], "norm_topk_prob": True},
    "olmoe": {**_COMMON, "num_experts": EXPERTS},
    "deepseek_v2": {**_LATENT, "topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    "gpt_oss": {**_COMMON, "num_local_experts": EXPERTS, "head_dim": 8, "sliding_window": 64},
}
"""Families by `model_type`, with eight experts a block of which a token goes to two."""
GROUPED = {"n_group": 4, "topk_group": 2, "n_routed_experts": 16, "num_experts_per_tok": 4}


def mixture(family: str, **more: Any) -> BlockModel:
    """Return a tiny model of a family with random weights; `more` are other settings of its config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SHAPES[family], **more})
    model = made_of(lambda of: AutoModelForCausalLM.from_config(of, trust_remote_code=False), config)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return BlockModel(model, ByteTokenizer(), load_plugins().find_blocks(model, family), name=family)


def experts_of(model: BlockModel) -> dict[int, Experts]:
    """Return the experts of each block that has some."""
    found = {block: model.units(block).experts for block in range(model.block_count)}
    return {block: experts for block, experts in found.items() if experts is not None}


@contextmanager
def watched(model: BlockModel, what: str) -> Iterator[dict[int, list[tuple[Any, ...]]]]:
    """Note what the experts or the routers of each block are called with."""
    seen: dict[int, list[tuple[Any, ...]]] = {}
    hooks = []
    for block, experts in experts_of(model).items():
        module = model.blocks[block].get_submodule(experts.name if what == "experts" else experts.router)
        seen[block] = []
        hooks.append(module.register_forward_pre_hook(lambda _module, args, block=block: seen[block].append(args)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def plant_unchosen(model: BlockModel, gone: Sequence[int], ids: Sequence[int]) -> None:
    """Change router rows so that no token of a text goes to some experts, and none thinks of them either."""
    for block, experts in experts_of(model).items():
        with torch.inference_mode(), watched(model, "routers") as seen:
            model.model(input_ids=torch.tensor([list(ids)]), use_cache=False)
        states_ND: Tensor = seen[block][0][0].reshape(-1, model.config.hidden_size).double()
        router: Any = model.blocks[block].get_submodule(experts.router)
        low_N = torch.full((len(states_ND),), -60.0, dtype=torch.float64)
        row_D = torch.linalg.lstsq(states_ND, low_N[:, None]).solution[:, 0]
        for expert in gone:
            router.weight.data[expert] = row_D.float()
