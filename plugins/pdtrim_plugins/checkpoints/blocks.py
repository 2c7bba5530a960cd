"""Forms of a block in a pruned checkpoint: removed, K/V only, with another block's K/V in addition, narrowed.

Shape suffixes: B batch, T token, D hidden, H heads, K head size.
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
"""The name, inside a block, of the submodule that computes the K/V of the merged block."""


def give_form(model: Any, entry: Mapping[str, Any]) -> None:
    """Give the blocks of a newly made model the forms that the `pdtrim` entry of its config describes."""
    layout = BlockLayout(entry["place"]["blocks"], *(tuple(entry["place"][key]) for key in ("kv", "attention", "mlp")))
    blocks = model.get_submodule(layout.blocks)
    head_dim = head_dim_of(model.config.get_text_config())
    for index, widths in entry.get("widths", {}).items():
        blocks[int(index)] = _thin(blocks[int(index)], int(index), widths, layout=layout, head_dim=head_dim)
    if "decode_index" not in entry:
        return
    for index in entry["shadows"]:
        blocks[index].add_module(SHADOW, KvOnly(copy.deepcopy(blocks[index]), layout.kv))
        blocks[index].register_forward_pre_hook(_run_shadow, with_kwargs=True)
    for index in entry["kv_only"]:
        blocks[index] = KvOnly(blocks[index], layout.kv)
    for index in entry["removed"]:
        blocks[index] = Removed()
    _number(blocks, {int(block): number for block, number in entry["decode_index"].items()})


class Removed(nn.Module):
    """A removed block: hidden states pass through unchanged."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """Return the hidden states `[B, T, D]` unchanged."""
        return hidden_states


class KvOnly(nn.Module):
    """Computes the K/V of a block: its input norm, two projections, K's norm; the tensors are named as in the block."""

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
        """Write the K/V of the hidden states `[B, T, D]` to the cache; return the hidden states unchanged."""
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
    """Assign the K/V that decode reads to decode's cache entries, and all others to the entries after them."""
    own = count(len(decode_index))
    for index, block in enumerate(blocks):
        if isinstance(block, Removed):
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
    """Return a block with the K/V heads, MLP channels and biases that `widths` gives."""
    shrinks = []
    for part in PARTS:
        names = layout.attention if part == "attention" else layout.mlp
        if part in widths:
            # An input projection gives the number of units: K in attention, because Q may have more heads.
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
