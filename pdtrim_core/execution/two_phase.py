"""Prefill with a cache, hand the K/V over, decode token by token: what a serving engine does, in one process.

One sequence at a time this is slow and plain on purpose: the reference that scoring in one pass and real engines are tested
against. Batches are for tasks that generate.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.stage_modules import Step, as_stage, decode_steps, prefill_steps
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Merge, Shrink
from pdtrim_core.plan.plan import FirstToken, Plan


def generate(
    model: BlockModel,
    plan: Plan,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    recompute: int,
    replacements: Mapping[Merge | Shrink, nn.Module],
) -> list[int]:
    """Return the greedy continuation of a prompt; ends early at the model's end-of-sequence token."""
    stops = _stop_tokens(model)
    made: list[int] = []
    with torch.inference_mode():
        cache, logits_V = _prefill(model, plan, prompt, recompute, replacements)
        with as_stage(model, decode_steps(model, plan, replacements)):
            if recompute:
                logits_V = _forward(model, prompt[len(prompt) - recompute :], cache)
            while len(made) < max_new_tokens:
                made.append(int(logits_V.argmax()))
                if made[-1] in stops or len(made) == max_new_tokens:
                    break
                logits_V = _forward(model, made[-1:], cache)
    return made


def continuation_logits(
    model: BlockModel,
    plan: Plan,
    prompt: Sequence[int],
    continuation: Sequence[int],
    *,
    recompute: int,
    replacements: Mapping[Merge | Shrink, nn.Module],
) -> Tensor:
    """Return the logits `[token, V]` that each token of a continuation is scored by, one decode step a token."""
    with torch.inference_mode():
        cache, logits_V = _prefill(model, plan, prompt, recompute, replacements)
        rows = []
        with as_stage(model, decode_steps(model, plan, replacements)):
            if recompute:
                logits_V = _forward(model, prompt[len(prompt) - recompute :], cache)
            rows.append(logits_V)
            rows += [_forward(model, [token], cache) for token in continuation[:-1]]
    return torch.stack(rows)


def generate_batch(
    model: BlockModel,
    plan: Plan,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    first_token: FirstToken,
    replacements: Mapping[Merge | Shrink, nn.Module],
    **options: Any,
) -> Tensor:
    """Return prompts with what follows each, `[B, T + new]`; each phase is `transformers`' own `generate`, given `options`.

    Prompts are padded on the left, where `mask_BT` is 0; texts that end early are padded on the right. The options have at least
    `max_length`, in which the prompt counts, and `pad_token_id`.
    """
    with torch.inference_mode():
        begun_BT, cache = _prefill_batch(
            model, plan, ids_BT, mask_BT, first_token=first_token, replacements=replacements, **options
        )
        if begun_BT.shape[1] >= options["max_length"]:
            return begun_BT
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(ids_BT), begun_BT.shape[1] - ids_BT.shape[1])], dim=1)
        with as_stage(model, decode_steps(model, plan, replacements)):
            whole_BT: Tensor = model.model.generate(begun_BT, attention_mask=mask_BT, past_key_values=cache, **options)
        if first_token == "prefill":
            # Decode does not know that prefill's token may have been the last one.
            stops = torch.tensor(sorted(_stop_tokens(model)), dtype=torch.long, device=begun_BT.device)
            whole_BT[torch.isin(begun_BT[:, -1], stops), begun_BT.shape[1] :] = options["pad_token_id"]
    return whole_BT


def _prefill_batch(
    model: BlockModel,
    plan: Plan,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    first_token: FirstToken,
    replacements: Mapping[Merge | Shrink, nn.Module],
    **options: Any,
) -> tuple[Tensor, Any]:
    """Run prefill; return the prompts, with their first token where prefill makes it, and the cache that decode starts from."""
    cache, width = _new_cache(), ids_BT.shape[1]
    if first_token == "decode" and width == 1:
        return ids_BT, cache
    steps = prefill_steps(model, plan, replacements)
    with as_stage(model, _something(steps)):
        if first_token == "prefill":
            one_more = {**options, "max_length": width + 1}
            ids_BT = model.model.generate(ids_BT, attention_mask=mask_BT, past_key_values=cache, **one_more)
        else:
            _read(model, ids_BT[:, :-1], mask_BT[:, :-1], cache)
    return ids_BT, _hand_over(model, plan, steps, cache)


def _read(model: BlockModel, ids_BT: Tensor, mask_BT: Tensor, cache: Any) -> None:
    """Run padded prompts into a cache; each counts its positions from its own first token."""
    positions: dict[str, Tensor] = {}
    if "position_ids" in inspect.signature(model.model.forward).parameters:
        positions["position_ids"] = (mask_BT.long().cumsum(-1) - 1).clamp(min=0)
    # The head has nothing to say here; one position of it is the least that models compute.
    model.model(input_ids=ids_BT, attention_mask=mask_BT, past_key_values=cache, use_cache=True, logits_to_keep=1, **positions)


def _new_cache() -> Any:
    from transformers import DynamicCache  # noqa: PLC0415 - slow to import, and only generation wants it

    # A cache that knows the config cuts sliding windows and then loses the length; a plain one keeps everything.
    return DynamicCache()


def _prefill(
    model: BlockModel, plan: Plan, prompt: Sequence[int], recompute: int, replacements: Mapping[Merge | Shrink, nn.Module]
) -> tuple[Any, Tensor]:
    """Run prefill; return the cache that decode starts from, and prefill's logits behind its last token."""
    cache = _new_cache()
    read = prompt[: len(prompt) - recompute]
    if not read:
        return cache, torch.empty(0)
    steps = prefill_steps(model, plan, replacements)
    with as_stage(model, _something(steps)):
        logits_V = _forward(model, read, cache)
    return _hand_over(model, plan, steps, cache), logits_V


def _something(steps: Sequence[Step]) -> Sequence[Step]:
    if not steps:
        raise PdtrimError("this plan leaves prefill nothing to run and decode needs K/V")
    return steps


def _hand_over(model: BlockModel, plan: Plan, steps: Sequence[Step], cache: Any) -> Any:
    """Return the cache that decode starts from: of prefill's K/V, those of the blocks that decode keeps."""
    handed_over = _new_cache()
    entries = {step.slot: number for number, step in enumerate(steps) if step.slot is not None}
    for source in plan.kv_map(model.block_count):
        layer = cache.layers[entries[source.slot]]
        kept = [head for head in range(layer.keys.shape[1]) if head not in source.removed_heads]
        handed_over.update(layer.keys[:, kept].clone(), layer.values[:, kept].clone(), source.slot)
    return handed_over


def _forward(model: BlockModel, tokens: Sequence[int], cache: Any) -> Tensor:
    """Run tokens on top of a cache; return the logits behind the last one, in float32."""
    ids = torch.tensor([list(tokens)], device=model.device)
    logits: Tensor = model.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    return logits[0, -1].float().cpu()


def _stop_tokens(model: BlockModel) -> set[int]:
    config = getattr(model.model, "generation_config", None) or model.config
    stop = getattr(config, "eos_token_id", None)
    return {token for token in (stop if isinstance(stop, list) else [stop]) if token is not None}
