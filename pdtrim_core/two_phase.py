"""Prefill with a cache, hand the K/V over, decode token by token: what a serving engine does, in one process.

One sequence at a time this is slow and plain on purpose: the reference that scoring in one pass and real engines are tested
against. Batches are for tasks that generate.
Each phase runs the model's own forward over its own list of blocks, renumbered, because transformers takes the length of
a cache from its entry 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.elements import Merge, Shrink, Stage
from pdtrim_core.errors import PdtrimError
from pdtrim_core.model import BlockModel
from pdtrim_core.plan import FirstToken, Plan


@dataclass(frozen=True)
class Step:
    """One entry of a stage's list of blocks.

    `like` is the block whose mask and layer type it takes; a step that is `passed_by` computes K/V and hands its input on;
    `slot` is the decode slot that its K/V belong to, None where decode has no use for them.
    """

    module: nn.Module
    like: int
    passed_by: bool = False
    slot: int | None = None


class _KvMade(Exception):  # noqa: N818 - no error: what a block was run for is there
    """The K/V of a block are in the cache."""


def generate(
    model: BlockModel,
    plan: Plan,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    recompute: int,
    stand_ins: Mapping[Merge | Shrink, nn.Module],
) -> list[int]:
    """Return the greedy continuation of a prompt; ends early at the model's end-of-sequence token."""
    stops = _stop_tokens(model)
    made: list[int] = []
    with torch.inference_mode():
        cache, logits_V = _prefill(model, plan, prompt, recompute, stand_ins)
        with _as_stage(model, _decode_steps(model, plan, stand_ins)):
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
    stand_ins: Mapping[Merge | Shrink, nn.Module],
) -> Tensor:
    """Return the logits `[token, V]` that each token of a continuation is scored by, one decode step a token."""
    with torch.inference_mode():
        cache, logits_V = _prefill(model, plan, prompt, recompute, stand_ins)
        rows = []
        with _as_stage(model, _decode_steps(model, plan, stand_ins)):
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
    stand_ins: Mapping[Merge | Shrink, nn.Module],
    **options: Any,
) -> Tensor:
    """Return prompts with what follows each, `[B, T + new]`; each phase is `transformers`' own `generate`, given `options`.

    Prompts are padded on the left, where `mask_BT` is 0; texts that end early are padded on the right. The options have at least
    `max_length`, in which the prompt counts, and `pad_token_id`.
    """
    with torch.inference_mode():
        begun_BT, cache = _prefill_batch(model, plan, ids_BT, mask_BT, first_token=first_token, stand_ins=stand_ins, **options)
        if begun_BT.shape[1] >= options["max_length"]:
            return begun_BT
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(ids_BT), begun_BT.shape[1] - ids_BT.shape[1])], dim=1)
        with _as_stage(model, _decode_steps(model, plan, stand_ins)):
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
    stand_ins: Mapping[Merge | Shrink, nn.Module],
    **options: Any,
) -> tuple[Tensor, Any]:
    """Run prefill; return the prompts, with their first token where prefill makes it, and the cache that decode starts from."""
    cache, width = _new_cache(), ids_BT.shape[1]
    if first_token == "decode" and width == 1:
        return ids_BT, cache
    steps = _prefill_steps(model, plan, stand_ins)
    with _as_stage(model, _something(steps)):
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
    model: BlockModel, plan: Plan, prompt: Sequence[int], recompute: int, stand_ins: Mapping[Merge | Shrink, nn.Module]
) -> tuple[Any, Tensor]:
    """Run prefill; return the cache that decode starts from, and prefill's logits behind its last token."""
    cache = _new_cache()
    read = prompt[: len(prompt) - recompute]
    if not read:
        return cache, torch.empty(0)
    steps = _prefill_steps(model, plan, stand_ins)
    with _as_stage(model, _something(steps)):
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


def _prefill_steps(model: BlockModel, plan: Plan, stand_ins: Mapping[Merge | Shrink, nn.Module]) -> list[Step]:
    slots = plan.slots(model.block_count)
    sources = {source.block: source for source in plan.kv_map(model.block_count)}
    steps = []
    for block in range(model.block_count):
        source = sources.get(block)
        number = None if source is None else source.slot
        merge = None if number is None else slots[number].merge
        if merge is not None and source is not None and source.source in ("shadow", "kv-only"):
            steps.append(Step(stand_ins[merge], merge.keep, passed_by=True, slot=number))
            number = None
        match plan.state("prefill", block):
            case "run":
                steps.append(Step(model.blocks[block], block, slot=number))
            case "kv-only" if merge is None and number is not None:
                module = _shrunk(model, block, slots[number].shrinks, stand_ins)
                steps.append(Step(module, block, passed_by=True, slot=number))
            case "shrunk":
                steps.append(Step(_shrunk(model, block, plan.prefill.shrinks_at(block), stand_ins), block, slot=number))
            case "merged":
                (merge,) = (element for element in plan.prefill.at(block) if isinstance(element, Merge))
                steps.append(Step(stand_ins[merge], merge.keep, slot=number))
    return steps


def _decode_steps(model: BlockModel, plan: Plan, stand_ins: Mapping[Merge | Shrink, nn.Module]) -> list[Step]:
    steps = []
    for slot in plan.slots(model.block_count):
        if slot.merge is not None:
            steps.append(Step(stand_ins[slot.merge], slot.merge.keep))
        else:
            steps.append(Step(_shrunk(model, slot.block, slot.shrinks, stand_ins), slot.block))
    return steps


def _shrunk(model: BlockModel, block: int, shrinks: Sequence[Shrink], stand_ins: Mapping[Merge | Shrink, nn.Module]) -> nn.Module:
    return model.narrowed(shrinks, stand_ins) if shrinks else model.blocks[block]


def _forward(model: BlockModel, tokens: Sequence[int], cache: Any) -> Tensor:
    """Run tokens on top of a cache; return the logits behind the last one, in float32."""
    ids = torch.tensor([list(tokens)], device=model.device)
    logits: Tensor = model.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
    return logits[0, -1].float().cpu()


def _stop_tokens(model: BlockModel) -> set[int]:
    config = getattr(model.model, "generation_config", None) or model.config
    stop = getattr(config, "eos_token_id", None)
    return {token for token in (stop if isinstance(stop, list) else [stop]) if token is not None}


@contextmanager
def _as_stage(model: BlockModel, steps: Sequence[Step]) -> Iterator[None]:
    """Give the model another list of blocks, renumbered, with a config to match; put everything back in any case."""
    parent_path, _, name = model.place.blocks.rpartition(".")
    parent = model.model.get_submodule(parent_path)
    blocks = getattr(parent, name)
    # Attributes that change are kept as they lie in the objects' own dictionaries: a config of transformers would check
    # each single change against the ones that have not come yet.
    changed = [vars(model.config), *(vars(m) for step in steps for m in step.module.modules())]
    kept = [(attributes, dict(attributes)) for attributes in changed]
    try:
        setattr(parent, name, nn.ModuleList([step.module for step in steps]))
        _renumber(model, steps)
        for step in steps:
            if step.passed_by:
                vars(step.module)["forward"] = model.passing_by(step.module)
        yield
    finally:
        setattr(parent, name, blocks)
        for attributes, before in kept:
            attributes.clear()
            attributes.update(before)


def _renumber(model: BlockModel, steps: Sequence[Step]) -> None:
    """Give each step its own entry in the cache, and cut the config's lists of one entry a block to match."""
    for number, step in enumerate(steps):
        for module in step.module.modules():
            if hasattr(module, "layer_idx"):
                vars(module)["layer_idx"] = number
    config = vars(model.config)
    for key, value in list(config.items()):
        if isinstance(value, list) and len(value) == model.block_count:
            config[key] = [value[step.like] for step in steps]
    config["num_hidden_layers"] = len(steps)


@contextmanager
def stage_alone(model: BlockModel, plan: Plan, stage: Stage, stand_ins: Mapping[Merge | Shrink, nn.Module]) -> Iterator[None]:
    """Make the model one stage of a plan inside the context, with nothing in it that the stage does not run.

    Blocks that prefill has for their K/V alone end there, where a cache is given; the K/V are those of the whole block.
    Meant for timing: the reference above runs such blocks to their end.
    """
    steps = _prefill_steps(model, plan, stand_ins) if stage == "prefill" else _decode_steps(model, plan, stand_ins)
    with _as_stage(model, steps):
        for step in steps:
            if step.passed_by:
                _end_at_kv(model, step)
        yield


def _end_at_kv(model: BlockModel, step: Step) -> None:
    """Let a step's block stop as soon as its K/V are in the cache, without making its queries where they are made apart."""
    inner = type(step.module).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        with suppress(_KvMade):
            inner(step.module, *map(_ending, args), **{key: _ending(value) for key, value in kwargs.items()})
        return model.wrap(step.like, hidden)

    vars(step.module)["forward"] = forward
    for name in model.place.attention[:1]:
        queries = step.module.get_submodule(name)
        vars(queries)["forward"] = _nothing(queries)


def _nothing(queries: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a forward that gives zeros in the shape of a projection's output, at no cost."""
    width = next(queries.parameters()).shape[0]
    return lambda hidden: hidden.new_zeros(1).expand(*hidden.shape[:-1], width)


def _ending(value: Any) -> Any:
    return _Ending(value) if hasattr(value, "get_seq_length") else value


class _Ending:
    """A cache that ends the block that fills it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._cache.update(*args, **kwargs)
        raise _KvMade

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
