"""Refuses models whose blocks are no plain sequence that can be run one by one, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.block_calls import hidden_of, split_call
from pdtrim_core.model.block_trace import plain_cache, traces_of

SAID = 6
"""Blocks that are named one by one."""


def check_config(config: Any, name: str) -> None:
    """Raise for models that cannot be run by stages, with the reason."""
    if getattr(config, "is_encoder_decoder", False):
        raise PdtrimError(f"{name} is an encoder-decoder model; prefill and decode are stages of decoder-only models")
    if getattr(config, "quantization_config", None) is not None:
        raise PdtrimError(f"{name} has quantised weights; prune the full-precision checkpoint and quantise the result")
    # Of an encoder-decoder model it may be uncertain which of its configs that is.
    text_config = config.get_text_config()
    rope = getattr(text_config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = parameters.get("rope_type", "default")
        if kind in ("longrope", "dynamic"):
            raise PdtrimError(
                f"{name} uses {kind} rotary embeddings, which change with the length of the batch: measurements would "
                "depend on what else is in the batch"
            )
    for key in ("head_dim", "num_attention_heads", "num_key_value_heads", "hidden_size"):
        try:
            getattr(text_config, key, None)
        except Exception as error:
            # transformers has an error of its own for a setting of which each block has another value.
            raise PdtrimError(
                f"{name}: its config has a {key} of its own for each block, and only blocks of one size can be renumbered"
            ) from error
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
    last = hidden_of(seen[-1][2])
    states = last.numel() // last.shape[-1]
    if states != ids.numel():
        raise PdtrimError(
            f"{name}: its blocks have {states} hidden states where one token is read, and only those with one a token can be "
            "handed to other blocks; this architecture cannot be pruned by blocks"
        )
    returns = tuple(tuple(None for _ in output[1:]) if isinstance(output, tuple | list) else None for _, _, output in seen)
    return returns, last.shape[-1]


def check_text_model(model: Any, path: str, name: str) -> None:
    """Raise `PdtrimError` for a model whose blocks no plan can be carried out on; it is run, so it should be a tiny one.

    Each block must hand K and V to the cache, once, take the output of the one before, and look at no later token.
    """
    blocks = tuple(model.get_submodule(path))
    check_own_weights(blocks, name)
    probe(model, blocks, torch.tensor([[1]]), name=name, layout=path)
    _check_causal(model, blocks, name)
    _check_cache(model, blocks, name)


def check_own_weights(blocks: Sequence[nn.Module], name: str) -> None:
    """Raise `PdtrimError` where two blocks have a weight in common, or are one."""
    first: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for path, weight in block.named_parameters():
            other = first.setdefault(id(weight), number)
            if other != number:
                raise PdtrimError(
                    f"{name}: blocks {other} and {number} share the weight {path}, so that neither can be removed or changed "
                    "alone; this architecture cannot be pruned by blocks"
                )


def _check_causal(model: Any, blocks: Sequence[nn.Module], name: str) -> None:
    """Raise where what a block makes of a token changes with the tokens behind it."""
    made: list[Tensor] = []
    hook = blocks[0].register_forward_hook(lambda _module, _args, output: made.append(hidden_of(output)[0, 0].clone()))
    try:
        with torch.inference_mode():
            for last in (2, 3):
                model(input_ids=torch.tensor([[1, 1, last]]), use_cache=False)
    finally:
        hook.remove()
    one, other = made
    if not torch.allclose(one, other, rtol=1e-4, atol=1e-5):
        raise PdtrimError(
            f"{name}: its blocks let a token see those behind it, so that it has no prefill and decode; this is no decoder (its "
            "config may want is_decoder = true)"
        )


def _check_cache(model: Any, blocks: Sequence[nn.Module], name: str) -> None:
    """Raise for blocks that keep no K/V for the tokens behind them, or more than that."""
    handed = _handed(model, blocks, plain_cache())
    plain = handed is not None
    if not plain:
        handed = _handed(model, blocks, plain_cache(model.config.get_text_config()))
    without = [str(number) for number in range(len(blocks)) if handed is None or not handed[number]]
    if without:
        which = f"{', '.join(without[:SAID])}{' ...' * (len(without) > SAID)}"
        raise PdtrimError(
            f"{name}: its blocks {which} hand on no K/V, as Mamba, linear attention and convolutions do not; no plan for "
            "prefill and decode can hand over what they know"
        )
    if not plain:
        raise PdtrimError(
            f"{name}: its blocks keep more than K and V of earlier tokens (an index or the state of a convolution, for example), "
            "which no plan for prefill and decode can hand over"
        )
    assert handed is not None
    if any(count > 1 for count in handed):
        raise PdtrimError(f"{name}: its blocks hand K/V on more than once each, so that no plan can remove a block with its K/V")


def _handed(model: Any, blocks: Sequence[nn.Module], cache: Any) -> list[int] | None:
    """Return how often each block hands K and V to a cache; None where the model does not run with it."""
    try:
        return [len(trace.kv) for trace in traces_of(model, blocks, cache)]
    except Exception:  # noqa: BLE001 - a block with another kind of state trips over the cache in its own way
        return None


def _same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are one, or have the same numbers: a block may have changed its input in place."""
    in_place = (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())
    return in_place or torch.equal(one, other)
