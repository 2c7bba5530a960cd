"""Refuses models whose blocks are no plain sequence that can be run one by one, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.block_calls import hidden_of, split_call


def check_config(config: Any, text_config: Any, name: str) -> None:
    """Raise for models that cannot be run by stages, with the reason."""
    if getattr(config, "is_encoder_decoder", False):
        raise PdtrimError(f"{name} is an encoder-decoder model; prefill and decode are stages of decoder-only models")
    if getattr(config, "quantization_config", None) is not None:
        raise PdtrimError(f"{name} has quantised weights; prune the full-precision checkpoint and quantise the result")
    rope = getattr(text_config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = parameters.get("rope_type", "default")
        if kind in ("longrope", "dynamic"):
            raise PdtrimError(
                f"{name} uses {kind} rotary embeddings, which change with the length of the batch: measurements would "
                "depend on what else is in the batch"
            )
    if getattr(text_config, "num_kv_shared_layers", 0):
        raise PdtrimError(f"{name} shares K/V between blocks, so a single block cannot be removed")


def check_blocks(count: int, name: str) -> None:
    """Raise for a model that has no block at all."""
    if count == 0:
        raise PdtrimError(
            f"{name} has no blocks: num_hidden_layers of its config must be 1 or more; take the config.json that belongs to its "
            "weights"
        )


def probe(
    model: Any, blocks: Sequence[nn.Module], ids: Tensor, *, name: str, layout: str
) -> tuple[tuple[tuple[Any, ...] | None, ...], int]:
    """Run one token through a model; learn whether its blocks return tensors or tuples. Raises where they are no sequence.

    The second number is the width of the hidden states behind the last block, which a replaced model's first block may not have.
    """
    check_blocks(len(blocks), name)
    seen: list[tuple[nn.Module, Tensor, Any]] = []
    hooks = [
        block.register_forward_hook(
            lambda module, args, kwargs, output: seen.append((module, split_call(args, kwargs)[0], output)), with_kwargs=True
        )
        for block in blocks
    ]
    try:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    in_order = len(seen) == len(blocks) and all(module is block for (module, _, _), block in zip(seen, blocks, strict=True))
    handed_on = all(_same(hidden_of(before), after) for (_, _, before), (_, after, _) in pairwise(seen))
    if not (in_order and handed_on):
        raise PdtrimError(
            f"{name}: the blocks at {layout} are not a plain sequence in which each takes the output of the one before; this "
            "architecture cannot be pruned by blocks"
        )
    returns = tuple(tuple(None for _ in output[1:]) if isinstance(output, tuple) else None for _, _, output in seen)
    return returns, hidden_of(seen[-1][2]).shape[-1]


def _same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are one, or have the same numbers: a block may have changed its input in place."""
    in_place = (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())
    return in_place or torch.equal(one, other)
