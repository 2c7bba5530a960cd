"""Forms of a block in a pruned checkpoint: removed, K/V only, with another block's K/V in addition, narrowed.

Shape suffixes: B batch, T token, D hidden, H heads, K head size.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from pdtrim_core.api import BlockLayout, PartModule, Shrink, experts_in, head_dim_of, narrowed, without_part

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")
STATES, KEYS, VALUES = "first_states", "first_keys", "first_values"
"""The tables of a block: hidden states in front of it, or K and V of all heads in front of the rotary embedding."""
OTHERS = -1
"""Stands for all tokens that a table does not have."""
SHADOW = "shadow"
"""The name, inside a block, of the submodule that computes the K/V of the merged block."""


def give_form(model: Any, entry: Mapping[str, Any]) -> None:
    """Give the blocks of a newly made model the forms that the `pdtrim` entry of its config describes."""
    layout = BlockLayout(entry["place"]["blocks"], *(tuple(entry["place"][key]) for key in ("kv", "attention", "mlp")))
    blocks = model.get_submodule(layout.blocks)
    head_dim = head_dim_of(model.config.get_text_config())
    for index, widths in entry.get("widths", {}).items():
        if int(index) >= len(blocks):
            continue  # a copy of the first blocks, to learn of the model
        blocks[int(index)] = _thin(blocks[int(index)], int(index), widths, layout=layout, head_dim=head_dim)
    modules = {part: PartModule(*module) for part, module in entry.get("parts", {}).items()}
    for index, part in entry.get("without", {}).items():
        blocks[int(index)] = without_part(blocks[int(index)], modules[part]).requires_grad_()
    if modules:
        _number_attention(blocks, [int(index) for index, part in entry["without"].items() if part == "attention"])
    if "decode_index" not in entry:
        return
    for index in entry["shadows"]:
        blocks[index].add_module(SHADOW, KvOnly(copy.deepcopy(blocks[index]), layout.kv))
        blocks[index].register_forward_pre_hook(_run_shadow, with_kwargs=True)
    for index in entry["kv_only"]:
        blocks[index] = KvOnly(blocks[index], layout.kv)
    if "first_tokens" in entry:
        _know_first_tokens(model, blocks, entry["first_tokens"], layout)
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
        self.first_tokens: FirstTokens | None = None
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
        values_BTHK = attention.v_proj(normed_BTD).view(shape)
        if self.first_tokens is not None:
            keys_BTHK = self.first_tokens.put(keys_BTHK.flatten(2), self.get_parameter(KEYS)).view(shape)
            values_BTHK = self.first_tokens.put(values_BTHK.flatten(2), self.get_parameter(VALUES)).view(shape)
        keys_BHTK = keys_BTHK.transpose(1, 2)
        _, keys_BHTK = apply_rotary_pos_emb(keys_BHTK, keys_BHTK, cos, sin)
        return keys_BHTK, values_BTHK.transpose(1, 2)


class FirstTokens:
    """What is known of the first tokens of prompts: which of the tokens that are read now stand in which row of the tables.

    A row of `OTHERS` is that of all tokens that have none of their own.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._rows = {token: row for row, token in enumerate(tokens)}
        self._rows_BT: Tensor | None = None

    @contextmanager
    def reading(self, ids_BT: Tensor | None, mask_BT: Tensor | None, before: int) -> Iterator[None]:
        """Know the first tokens of these texts inside the context; `before` tokens of each have been read already.

        Texts may be padded on the left, where the mask `[B, T]` is 0.
        """
        if before == 0 and ids_BT is not None:
            rows_BT = torch.full_like(ids_BT, -1)
            seen_BT = torch.ones_like(ids_BT) if mask_BT is None or mask_BT.shape != ids_BT.shape else mask_BT
            for row, column in enumerate(seen_BT.long().argmax(dim=1).tolist()):
                rows_BT[row, column] = self._rows.get(int(ids_BT[row, column]), self._rows.get(OTHERS, -1))
            self._rows_BT = rows_BT
        try:
            yield
        finally:
            self._rows_BT = None

    def put(self, made_BTX: Tensor, table_KX: Tensor) -> Tensor:
        """Return what was made of the tokens, with the rows of a table for those that are in it."""
        if self._rows_BT is None:
            return made_BTX
        rows_BT = self._rows_BT.to(made_BTX.device)
        known_BTX = table_KX[rows_BT.clamp(min=0)].to(made_BTX.dtype)
        return torch.where((rows_BT >= 0)[..., None], known_BTX, made_BTX)


def _know_first_tokens(model: Any, blocks: Any, entry: Mapping[str, Any], layout: BlockLayout) -> None:
    """Give the blocks that an entry names their tables, and the model what looks them up."""
    known, count = FirstTokens(entry["tokens"]), len(entry["tokens"])
    model.first_tokens = known
    for index in entry["kv"]:
        maker = getattr(blocks[index], SHADOW, blocks[index])
        maker.first_tokens = known
        for table, projection in ((KEYS, layout.kv[1]), (VALUES, layout.kv[2])):
            like = maker.get_submodule(projection).weight
            maker.register_parameter(table, nn.Parameter(like.new_empty(count, len(like))))
    for index in entry["states"]:
        like = blocks[index].get_submodule(layout.kv[1]).weight
        blocks[index].register_parameter(STATES, nn.Parameter(like.new_empty(count, like.shape[1])))
        blocks[index].register_forward_pre_hook(functools.partial(_begin, known), with_kwargs=True)


def _begin(known: FirstTokens, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    table_KD = block.get_parameter(STATES)
    if args:
        return (known.put(args[0], table_KD), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": known.put(kwargs["hidden_states"], table_KD)}


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


def _number_attention(blocks: Any, without_attention: Sequence[int]) -> None:
    """Number the entries of the cache by the blocks that have attention, since its length is that of the first entry."""
    attending = [block for index, block in enumerate(blocks) if index not in without_attention]
    for number, block in enumerate(attending):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number


def _thin(block: nn.Module, index: int, widths: Mapping[str, Any], *, layout: BlockLayout, head_dim: int) -> nn.Module:
    """Return a block with the K/V heads, MLP channels, experts and biases that `widths` gives."""
    shrinks = []
    for part in PARTS:
        names = layout.attention if part == "attention" else layout.mlp
        if part in widths:
            # An input projection gives the number of units: K in attention, because Q may have more heads.
            rows = block.get_submodule(names[1] if part == "attention" else names[0]).out_features
            dense = int(rows) // (head_dim if part == "attention" else 1)  # type: ignore[arg-type]
            if widths[part] < dense:
                shrinks.append(Shrink(index, part, tuple(range(widths[part], dense))))
    experts = experts_in(block) if "experts" in widths else None
    if experts is not None:
        # Which ones go does not matter before there are weights, but routers want groups of one size.
        groups = experts.routing.groups_of(experts.count)
        gone = [expert for group in groups for expert in group[widths["experts"] // len(groups) :]]
        shrinks.append(Shrink(index, "experts", tuple(gone)))
    thin = narrowed(block, layout, head_dim, shrinks, {}) if shrinks else block
    for part in widths.get("bias", ()):
        out = thin.get_submodule((layout.attention if part == "attention" else layout.mlp)[-1])
        assert isinstance(out, nn.Linear)
        out.bias = nn.Parameter(out.weight.new_zeros(out.out_features))
    return thin.requires_grad_()
