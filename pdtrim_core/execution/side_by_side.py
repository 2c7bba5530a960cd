"""Several plans beside the dense model, token by token: each batch is laid out once, and the dense model runs it once for all.

Shape suffixes: N positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pdtrim_core.data.items import Item
from pdtrim_core.execution.distributions import distances, likeliest, logprobs
from pdtrim_core.execution.prefix_cache import PrefixCache, PreparedBatch
from pdtrim_core.execution.staged_model import ComparedToken, StagedModel
from pdtrim_core.model.logits_head import HEAD_NUMBERS
from pdtrim_core.model.packed_weights import packed

LOGITS_HELD = 4
"""Tensors of logits or of what is made of them that are held at once: two of the dense model's, two of a plan's."""

ComparedChoices = tuple[tuple[ComparedToken, ...], ...]
"""For each choice of an item its tokens."""


def compare(
    prefix_cache: PrefixCache,
    models: Sequence[StagedModel],
    items: Sequence[Item],
    compared: Callable[[int], None] = lambda count: None,
) -> list[list[ComparedChoices]]:
    """Return for each plan, and for each item, how it and the dense model differ at each token of each choice.

    All plans are on the prefix cache. What it keeps of a batch is forgotten behind that batch, so that memory does not grow with
    the items: plans that begin as the dense model does, or as each other, still share their hidden states. `compared` is told
    behind each batch how many items it had.
    """
    found: list[dict[Item, ComparedChoices]] = [{} for _ in models]
    model, groups = prefix_cache.model, prefix_cache.groups(items)
    # Where weights stay on the disk, so do those of the plans' own modules.
    own = [] if model.streams else [module for of_plan in models for module in of_plan.own_modules]
    with packed(model, prefix_cache.of_dense.model, modules=own, products=len(groups) * len(models)):
        for group in groups:
            ((_, prepared),) = prefix_cache.batches(group)
            with torch.inference_mode():
                of_models = _of_batch(prefix_cache, models, prepared)
            for of_items, rows in zip(found, of_models, strict=True):
                choices: list[list[list[ComparedToken]]] = [[[] for _ in item.choices] for item in group]
                for (item, choice), (divergence, same, *rest) in zip(prepared.batch.owners, rows, strict=True):
                    choices[item][choice].append(ComparedToken(divergence, bool(same), *rest))
                of_items.update({item: tuple(map(tuple, own)) for item, own in zip(group, choices, strict=True)})
            prefix_cache.forget()
            compared(len(group))
    return [[of_items[item] for item in items] for of_items in found]


def _of_batch(prefix_cache: PrefixCache, models: Sequence[StagedModel], prepared: PreparedBatch) -> list[list[list[float]]]:
    """Return for each plan the numbers of a `ComparedToken` at each target of a batch."""
    batch, dense = prepared.batch, prefix_cache.of_dense.model
    dense_ND = prepared.dense_hidden
    hidden = [dense_ND if model.is_dense else model.hidden_at_targets(prepared) for model in models]
    step = max(1, HEAD_NUMBERS // prefix_cache.model.config.vocab_size // LOGITS_HELD)
    rows = [torch.empty(len(batch.targets), 5, dtype=torch.float64) for _ in models]
    for start in range(0, len(dense_ND), step):
        here = ((batch.target_at >= start) & (batch.target_at < start + step)).nonzero()[:, 0]
        dense_NV = logprobs(dense, dense_ND[start : start + step])
        at, targets = (values[here].to(dense_NV.device) for values in (batch.target_at - start, batch.targets))
        top_N, dense_of_targets = dense_NV.argmax(dim=-1), dense_NV[at, targets]
        for own, hidden_ND in zip(rows, hidden, strict=True):
            plan_NV = dense_NV if hidden_ND is dense_ND else logprobs(prefix_cache.model, hidden_ND[start : start + step])
            same_N = likeliest(plan_NV, torch.arange(len(top_N), device=top_N.device), top_N)
            divergence_N, overlap_N = distances(dense_NV, plan_NV)
            numbers = [divergence_N[at], same_N[at], overlap_N[at], plan_NV[at, targets], dense_of_targets]
            own[here] = torch.stack(numbers, dim=1).double().cpu()
    return [own.tolist() for own in rows]
