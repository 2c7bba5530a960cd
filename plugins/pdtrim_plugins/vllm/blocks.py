"""Blocks of a stage, built from the engine's own: removed ones, K/V only, with a shadow, and narrowed ones.

Shape suffixes: N token, D hidden, H heads, E head size.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.first_tokens import KEYS, STATES, VALUES, FirstTokens, put, table
from pdtrim_plugins.vllm.layout import Layout
from pdtrim_plugins.vllm.ordering import after

Hidden = tuple[Tensor, Tensor | None]
"""What vLLM hands from block to block: the last block's output and the residual to add it to, None before block 0."""
OUTPUTS = {"attention": ("self_attn", "o_proj"), "mlp": ("mlp", "down_proj")}
"""The projection out of each part, which all families name alike."""
OPTION = "pdtrim_kv_only"
"""Key of vLLM's --additional-config: "attention" (public interfaces only) or "cache" (no attention is computed)."""


def block(layer: Any, *, prefix: str, **given: Any) -> nn.Module:
    """Return the module that a stage runs at a block; vLLM's models take this function as `layer_type` or `decoder_layer_type`.

    `layer` is the engine's own class of the block; `prefix` is the name that vLLM would give it.
    """
    config = given.get("config") or given["vllm_config"].model_config.hf_config
    layout, number = Layout.of(config), int(prefix.rpartition(".")[2])
    if number in layout.removed:
        return Skipped()
    known = len(layout.first_tokens)
    of_kv = known if number in layout.first_kv else 0
    if number in layout.kv_only:
        return KvOnly(layer(prefix=layout.decode_prefix(prefix), **given), of_kv)
    if number in layout.widths:
        given["config"] = copy.copy(config)
        given["config"].intermediate_size = layout.widths[number]
    own: Any = beginning(layer) if number in layout.first_states else layer
    if number not in layout.shadows:
        made: nn.Module = own(prefix=layout.own_prefix(prefix), **given)
    else:
        made = shadowed(own)(prefix=layout.own_prefix(prefix), **given)
        made.shadow = KvOnly(layer(prefix=layout.decode_prefix(prefix), **given), of_kv)
    if number in layout.lost:
        take_out(made, layout.lost[number])
    for part in layout.biased.get(number, ()):
        give_bias(made, part)
    if number in layout.first_states:
        made.register_parameter(STATES, table(known, config.hidden_size))
    return made


def give_bias(made: nn.Module, part: str) -> None:
    """Give the projection out of a part of a block a bias, which the engine's own of this family has not."""
    name, projection = OUTPUTS[part]
    parent: Any = made.get_submodule(name)
    stock = getattr(parent, projection)
    biased = RowParallelLinear(
        stock.input_size,
        stock.output_size,
        bias=True,
        reduce_results=stock.reduce_results,
        quant_config=stock.quant_config,
        prefix=stock.prefix,
    )
    setattr(parent, projection, biased)


def take_out(made: nn.Module, part: str) -> None:
    """Let a part of a block give zeros; without attention the engine keeps no K/V of the block."""
    name, _ = OUTPUTS[part]
    if part == "attention":
        attention: Any = made.get_submodule(name)
        del get_current_vllm_config().compilation_config.static_forward_context[attention.attn.layer_name]
    setattr(made, name, Zeros())


def give_rows(blocks: nn.Module, firsts: FirstTokens) -> None:
    """Let all blocks that have tables read which rows of them stand where."""
    for module in list(blocks.modules()):
        if any(name in (STATES, KEYS) for name, _ in module.named_parameters(recurse=False)):
            module.register_buffer("rows_N", firsts.rows_N, persistent=False)


class Zeros(nn.Module):
    """In place of a part that is gone."""

    def forward(self, *inputs: Tensor, hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        """Return zeros like the hidden states, which come last where they come without a name."""
        return torch.zeros_like(inputs[-1] if hidden_states is None else hidden_states)


class Skipped(nn.Module):
    """A removed block: hidden states pass through unchanged."""

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **_: Any) -> Hidden:
        """Return the hidden states unchanged."""
        del positions
        return hidden_states, residual


class KvOnly(nn.Module):
    """Computes the K/V of a block from its input; hidden states pass through unchanged.

    It is built from a whole block of the engine, of which it keeps the input norm and the projections to K and V. With `known`,
    it has tables of the K and V of so many first tokens.
    """

    rows_N: Tensor

    def __init__(self, layer: Any, known: int = 0) -> None:
        super().__init__()
        self.input_layernorm = layer.input_layernorm
        self.self_attn = KvOnlyAttention(layer.self_attn)
        self.known = known
        if known:
            attn, heads = self.self_attn.attn, layer.self_attn.qkv_proj.total_num_kv_heads
            for name in (KEYS, VALUES):
                self.register_parameter(name, table(known, attn.num_kv_heads * attn.head_size, heads=heads))

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **_: Any) -> Hidden:
        """Write the K/V to the cache; return the hidden states unchanged."""
        # The engine's norm with two arguments works in place; with one it does not change its input.
        hidden_ND = hidden_states if residual is None else hidden_states + residual
        tables = (self.rows_N, self.get_parameter(KEYS), self.get_parameter(VALUES)) if self.known else None
        done = self.self_attn(positions, self.input_layernorm(hidden_ND), tables)
        # Where no block ran at all, the engine's final norm still needs a residual.
        return after(hidden_states, done), torch.zeros_like(hidden_states) if residual is None else residual


class KvOnlyAttention(nn.Module):
    """The projections to K and V, with the norm and rotary embedding of K before it is cached."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        stock = attention.qkv_proj
        # The engine's own class, with no query heads, so that weights load, and are sharded over devices, as in its own blocks.
        self.qkv_proj = QKVParallelLinear(
            stock.hidden_size,
            stock.head_size,
            total_num_heads=0,
            total_num_kv_heads=stock.total_num_kv_heads,
            bias=stock.bias is not None,
            quant_config=attention.attn.quant_config,
            prefix=stock.prefix,
        )
        self.k_norm = getattr(attention, "k_norm", None)
        self.rotary_emb = attention.rotary_emb
        self.attn = attention.attn
        self._keep_kv: Any = None
        if _way(self.attn) == "cache":
            from pdtrim_plugins.vllm.keeping import keep_kv  # noqa: PLC0415 - what it imports of vLLM is not public

            self._keep_kv = keep_kv

    def forward(self, positions: Tensor, normed_ND: Tensor, tables: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
        """Write K/V to the cache; return a tensor that depends on it.

        `tables` are the rows of known tokens, and their K and V.
        """
        kv, _ = self.qkv_proj(normed_ND)
        key, value = kv.chunk(2, dim=-1)
        if self.k_norm is not None:
            key = self.k_norm(key.reshape(-1, self.attn.num_kv_heads, self.attn.head_size)).flatten(1)
        if tables is not None:
            rows_N, keys_KX, values_KX = tables
            key, value = put(rows_N, key, keys_KX), put(rows_N, value, values_KX)
        key, _ = self.rotary_emb(positions, key.contiguous(), None)
        keep = self._attend if self._keep_kv is None else self._keep
        return keep(key, value.contiguous())

    def _attend(self, key: Tensor, value: Tensor) -> Tensor:
        """Attend with zero queries through vLLM's public interface, which writes K/V to the cache as well."""
        queries = key.new_zeros(len(key), self.attn.num_heads * self.attn.head_size)
        done: Tensor = self.attn(queries, key, value)
        return done

    def _keep(self, key: Tensor, value: Tensor) -> Tensor:
        key_NHE, value_NHE = (kv.view(-1, self.attn.num_kv_heads, self.attn.head_size) for kv in (key, value))
        done: Tensor = self._keep_kv(key_NHE, value_NHE, self.attn.layer_name)
        return done


def _way(attention: Any) -> str:
    way = get_current_vllm_config().additional_config.get(OPTION, "attention")
    if way not in ("attention", "cache"):
        raise PdtrimError(f"--additional-config has {OPTION} = {way!r}: it is 'attention' or 'cache'")
    if way == "cache" and attention.attn_backend.forward_includes_kv_cache_update:
        raise PdtrimError(
            f"the attention backend {attention.attn_backend.get_name()} writes K/V only while it attends: say {OPTION} = "
            "'attention', or choose another backend"
        )
    return str(way)


@functools.cache
def beginning(layer: Any) -> type[nn.Module]:
    """Return a subclass of the engine's block that goes on from a table of hidden states where a first token is known."""

    class Beginning(layer):  # type: ignore[misc]  # the family is known only at run time
        rows_N: Tensor

        def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **given: Any) -> Hidden:
            hidden_ND = put(self.rows_N, hidden_states, self.get_parameter(STATES))
            if residual is not None:
                residual = torch.where((self.rows_N[: len(residual)] >= 0)[:, None], 0.0, residual)
            found: Hidden = super().forward(positions, hidden_ND, residual, **given)
            return found

    return Beginning


@functools.cache
def shadowed(layer: Any) -> type[nn.Module]:
    """Return a subclass of the engine's block whose `shadow` writes another block's K/V, from the same input, before it runs."""

    class Shadowed(layer):  # type: ignore[misc]  # the family is known only at run time
        shadow: KvOnly

        def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **given: Any) -> Hidden:
            kept, _ = self.shadow(positions, hidden_states, residual)
            found: Hidden = super().forward(positions, kept, residual, **given)
            return found

    return Shadowed
