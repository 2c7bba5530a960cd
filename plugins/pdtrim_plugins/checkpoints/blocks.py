"""Forms that a block of a pruned checkpoint can have: gone, its K/V alone, with another block's K/V beside it, narrowed.

Shape suffixes: B batch, T token, D hidden, H heads, K numbers of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, Literal

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from pdtrim_core.api import BlockLayout, Shrink, head_dim_of, narrowed

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")
SHADOW = "shadow"
"""The name, inside a block, of the part that makes the K/V of the merged block."""


def give_form(model: Any, told: Mapping[str, Any]) -> None:
    """Change the blocks of a model that was just made to what the `pdtrim` entry of its config tells."""
    layout = BlockLayout(told["place"]["blocks"], *(tuple(told["place"][key]) for key in ("kv", "attention", "mlp")))
    blocks = model.get_submodule(layout.blocks)
    head_dim = head_dim_of(model.config.get_text_config())
    for index, widths in told.get("widths", {}).items():
        blocks[int(index)] = _thin(blocks[int(index)], int(index), widths, layout=layout, head_dim=head_dim)
    if "decode_index" not in told:
        return
    for index in told["shadows"]:
        blocks[index].add_module(SHADOW, KvOnly(copy.deepcopy(blocks[index]), layout.kv))
        blocks[index].register_forward_pre_hook(_run_shadow, with_kwargs=True)
    for index in told["kv_only"]:
        blocks[index] = KvOnly(blocks[index], layout.kv)
    for index in told["removed"]:
        blocks[index] = PassedBy()
    _number(blocks, {int(block): number for block, number in told["decode_index"].items()})


class PassedBy(nn.Module):
    """A block that is gone: the stream passes by."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """Return the stream `[B, T, D]` as it came."""
        return hidden_states


class KvOnly(nn.Module):
    """What makes the K/V of a block: the norm in front, two projections, K's norm; its tensors are named as in the block."""

    def __init__(self, block: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        for name in names:
            parent, _, attribute = name.rpartition(".")
            self.get_submodule(parent).add_module(attribute, block.get_submodule(name))
        self.head_dim: int = block.get_submodule("self_attn").head_dim  # type: ignore[assignment]
        self.layer_idx = 0

    def forward(
        self,
        hidden_states: Tensor,
        *_args: Any,
        past_key_values: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **_kwargs: Any,
    ) -> Tensor:
        """Put the K/V of the stream `[B, T, D]` into the cache; return the stream as it came."""
        if past_key_values is not None and position_embeddings is not None:
            keys_BHTK, values_BHTK = self._kv(hidden_states, *position_embeddings)
            past_key_values.update(keys_BHTK, values_BHTK, self.layer_idx)
        return hidden_states

    def _kv(self, hidden_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        attention: Any = self.self_attn
        normed_BTD = self.get_submodule("input_layernorm")(hidden_BTD)
        shape = (*normed_BTD.shape[:-1], -1, self.head_dim)
        keys_BTHK = attention.k_proj(normed_BTD).view(shape)
        if hasattr(attention, "k_norm"):
            keys_BTHK = attention.k_norm(keys_BTHK)
        keys_BHTK = keys_BTHK.transpose(1, 2)
        _, keys_BHTK = apply_rotary_pos_emb(keys_BHTK, keys_BHTK, cos, sin)
        return keys_BHTK, attention.v_proj(normed_BTD).view(shape).transpose(1, 2)


def _run_shadow(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    block.get_submodule(SHADOW)(*args, **kwargs)


def _number(blocks: Any, decode_index: Mapping[int, int]) -> None:
    """Give decode's K/V decode's entries of the cache, and all others the entries behind them."""
    own = count(len(decode_index))
    for index, block in enumerate(blocks):
        if isinstance(block, PassedBy):
            continue
        shared = decode_index.get(index)
        shadow = getattr(block, SHADOW, None)
        if shadow is not None:
            shadow.layer_idx = shared
            shared = None
        number = next(own) if shared is None else shared
        for module in block.modules():
            if hasattr(module, "layer_idx") and module is not shadow:
                module.layer_idx = number


def _thin(block: nn.Module, index: int, widths: Mapping[str, Any], *, layout: BlockLayout, head_dim: int) -> nn.Module:
    """Return a block with as many K/V heads and MLP channels as `widths` says, and the biases that it names."""
    shrinks = []
    for part in PARTS:
        names = layout.attention if part == "attention" else layout.mlp
        if part in widths:
            # Any projection into a part tells its units: K of attention, where Q has more heads.
            rows = block.get_submodule(names[1] if part == "attention" else names[0]).out_features
            dense = int(rows) // (head_dim if part == "attention" else 1)  # type: ignore[arg-type]
            if widths[part] < dense:
                shrinks.append(Shrink(index, part, tuple(range(widths[part], dense))))
    thin = narrowed(block, layout, head_dim, shrinks, {}) if shrinks else block
    for part in widths.get("bias", ()):
        out = thin.get_submodule((layout.attention if part == "attention" else layout.mlp)[-1])
        assert isinstance(out, nn.Linear)
        out.bias = nn.Parameter(out.weight.new_zeros(out.out_features))
    return thin.requires_grad_()
