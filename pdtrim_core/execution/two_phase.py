"""Prefill with a cache, hand the K/V over, decode token by token: what a serving engine does, in one process.

One sequence at a time this is slow and plain on purpose: the reference that scoring in one pass and real engines are tested
against. Batches are for tasks that generate.

Shape suffixes: B batch, T token, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.attention_weights import Seen, attention_weights
from pdtrim_core.execution.batching import Firsts
from pdtrim_core.execution.first_tokens import first_tokens_in, give_first_tokens, kv_of_first
from pdtrim_core.execution.handed_over import HandedOver, joined
from pdtrim_core.execution.padding import left_padded, of_about_one_length
from pdtrim_core.execution.selected_kv import check_masks, give_selections, unread_of
from pdtrim_core.execution.stage_modules import Modules, Step, as_stage, checked_modules, entries_of, steps_of
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.packed_weights import packed
from pdtrim_core.plan.plan import FirstToken, Plan

WATCHED_AT_ONCE = 128
"""Tokens whose attention weights are there at a time."""


@dataclass(frozen=True)
class Prefilled:
    """A prompt as prefill has read it: all of prefill's K/V, and the logits `[V]` behind what was read."""

    tokens: tuple[int, ...]
    cache: Any
    logits_V: Tensor


class TwoPhaseModel:
    """A model under a plan that generates in two phases, with a real hand-over of K/V.

    `modules` has a module for every merge of the plan; `first_token` is the stage that makes the first token of an answer.
    Raises `PdtrimError` for a plan that does not fit, and for a merge without its module.
    """

    def __init__(
        self, model: BlockModel, plan: Plan, modules: Modules | None = None, *, first_token: FirstToken = "decode"
    ) -> None:
        plan.check_fits(model.block_count)
        self.plan = plan
        self.first_token: FirstToken = first_token
        self.model = model
        self._modules = checked_modules(plan, modules)
        if plan.selections:
            check_masks(model)

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        recompute: int | None = None,
        prefilled: Prefilled | None = None,
        on_token: Callable[[int], None] = lambda token: None,
    ) -> list[int]:
        """Return the greedy continuation of a prompt; it ends early at the model's end-of-sequence token.

        `recompute` is how many prompt tokens decode runs again: 1 where decode makes the first token (engines that hand
        over whole cache blocks run more), 0 where prefill makes it. `prefilled` is the prompt as `prefill` has read it, of this
        or of another pair with the same prefill. `on_token` is told each token as soon as it is made.
        """
        # The last token that is made is never read.
        self.model.check_tokens(prompt, "the prompt with what follows it", more=max(0, max_new_tokens - 1))
        stops = stop_tokens(self.model)
        made: list[int] = []
        with torch.inference_mode(), self._decoding(prompt, recompute, prefilled) as (handed, behind_prompt_V):
            logits_V = behind_prompt_V
            while len(made) < max_new_tokens:
                made.append(int(logits_V.argmax()))
                on_token(made[-1])
                if made[-1] in stops or len(made) == max_new_tokens:
                    break
                logits_V = self._forward(made[-1:], handed.cache)
        return made

    def continuation_logits(
        self, prompt: Sequence[int], continuation: Sequence[int], *, prefilled: Prefilled | None = None
    ) -> Tensor:
        """Return the logits `[token, V]` behind the prompt and each token but the last of a continuation.

        This is the reference that scoring in one pass agrees with: one decode step a token. `prefilled` is as for `generate`.
        """
        self.model.check_tokens([*prompt, *continuation], "the prompt with its continuation", more=-1)
        with torch.inference_mode(), self._decoding(prompt, None, prefilled) as (handed, logits_V):
            return torch.stack([logits_V, *(self._forward([token], handed.cache) for token in continuation[:-1])])

    def prefill(self, prompt: Sequence[int]) -> Prefilled:
        """Return a prompt as prefill reads it, for pairs that differ in decode alone: it is not read again for each of them."""
        self.model.check_tokens(prompt, "the prompt")
        with torch.inference_mode():
            return self._prefill(prompt[: len(prompt) - self._recomputed(None)])

    @property
    def decode_blocks(self) -> tuple[int, ...]:
        """Where the layers of decode that have attention are placed, in order."""
        return tuple(slot.block for slot in self.plan.slots(self.model.block_count))

    def watch(self, prompt: Sequence[int], continuation: Sequence[int], seen: Seen) -> None:
        """Run decode behind a prompt, over a continuation but for its last token, and tell how its layers look.

        `seen` is given the block where a layer is placed and its attention weights `[heads, queries, keys]`: of some tokens that
        decode runs, on those that prefill handed over and on their own. Raises `PdtrimError` for a model that gives none.
        """
        self.model.check_tokens([*prompt, *continuation], "the prompt with its continuation", more=-1)
        read = [*prompt, *continuation[:-1]]
        handed_over, blocks = len(prompt) - self._recomputed(None), self.decode_blocks
        with torch.inference_mode():
            handed = self.hand_over(self._prefill(read[:handed_over]))
            with (
                self._as_decode(handed),
                attention_weights(self.model, lambda number, weights: seen(blocks[number], weights)),
            ):
                # A few tokens at a time: each looks at all in front of it.
                for start in range(handed_over, len(read), WATCHED_AT_ONCE):
                    ids_BT = torch.tensor([read[start : start + WATCHED_AT_ONCE]], device=self.model.device)
                    mask_BT = torch.ones(1, start + ids_BT.shape[1], dtype=torch.long, device=ids_BT.device)
                    self._read(ids_BT, mask_BT, handed.cache)

    def decodes_as(self, other: TwoPhaseModel) -> bool:
        """Tell whether another pair has the same decode, so that both can write in one batch, whatever their prefill."""
        return self.model is other.model and self._decode_runs == other._decode_runs

    def greedy_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        on_step: Callable[[], None] = lambda: None,
        *,
        beside: Sequence[TwoPhaseModel] = (),
    ) -> list[list[int]]:
        """Return the greedy continuations of prompts that run together, as `generate` returns that of one.

        `beside` are pairs with the same decode (see `decodes_as`), whose continuations of the same prompts come behind these. A
        text that has ended is run no further. `on_step` is called whenever all that still run have another token.
        """
        for prompt in prompts:
            self.model.check_tokens(prompt, "the prompt with what follows it", more=max(0, max_new_tokens - 1))
        pairs = (self, *beside)
        assert all(map(self.decodes_as, beside))
        stops, made = stop_tokens(self.model), [list[int]() for _ in pairs for _ in prompts]
        ids_BT, mask_BT = left_padded(prompts, self.model.device)
        running = list(range(len(made)))
        decoding = self._decoding_batch(beside, ids_BT, mask_BT)
        with torch.inference_mode(), decoding as (handed, behind_BV), packed(self.model, products=max_new_tokens):
            logits_BV, mask_BT = behind_BV, mask_BT.repeat(len(pairs), 1)
            for count in range(1, max_new_tokens + 1):
                tokens_B = logits_BV.float().argmax(dim=-1)
                for number, token in zip(running, tokens_B.tolist(), strict=True):
                    made[number].append(token)
                on_step()
                stay = [row for row, number in enumerate(running) if made[number][-1] not in stops]
                if count == max_new_tokens or not stay:
                    break
                if len(stay) < len(running):
                    rows = torch.tensor(stay)  # of the host, since K/V may be on several devices
                    handed.keep_rows(rows)
                    tokens_B, mask_BT, running = tokens_B[rows], mask_BT[rows], [running[row] for row in stay]
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(running), 1)], dim=1)
                logits_BV = self._read(tokens_B[:, None], mask_BT, handed.cache)
        return made

    def generate_batch(self, ids_BT: Tensor, mask_BT: Tensor, **options: Any) -> Tensor:
        """Return prompts with what follows each, `[B, T + new]`; each phase is `transformers`' own `generate`, given `options`.

        Prompts are padded on the left, where `mask_BT` is 0; texts that end early are padded on the right. The options have at
        least `max_length`, in which the prompt counts, and `pad_token_id`.
        """
        new = options["max_length"] - ids_BT.shape[1]
        for ids_T, mask_T in zip(ids_BT.tolist(), mask_BT.tolist(), strict=True):
            self.model.check_ids(ids_T, "a prompt with its padding")
            read = [token for token, seen in zip(ids_T, mask_T, strict=True) if seen]
            self.model.check_tokens(read, "a prompt with what follows it", more=max(0, new - 1))
        with torch.inference_mode():
            begun_BT, handed = self._prefill_batch(ids_BT, mask_BT, options)
            if begun_BT.shape[1] >= options["max_length"]:
                return begun_BT
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(ids_BT), begun_BT.shape[1] - ids_BT.shape[1])], dim=1)
            with self._as_decode(handed), packed(self.model, products=new):
                given = {"attention_mask": mask_BT, "past_key_values": handed.cache, **options}
                whole_BT: Tensor = self.model.model.generate(begun_BT, **given)
            if self.first_token == "prefill":
                # Decode does not know that prefill's token may have been the last one.
                stops = torch.tensor(sorted(stop_tokens(self.model)), dtype=torch.long, device=begun_BT.device)
                whole_BT[torch.isin(begun_BT[:, -1], stops), begun_BT.shape[1] :] = options["pad_token_id"]
        return whole_BT

    # The steps are kept with their narrowed blocks, from one prompt to the next.

    @cached_property
    def _prefill_steps(self) -> list[Step]:
        steps = steps_of(self.model, self.plan, "prefill", self._modules)
        assert steps  # decode runs at least one block, whose K/V prefill computes
        return steps

    @contextmanager
    def _as_prefill(self, ids_BT: Tensor, mask_BT: Tensor) -> Iterator[None]:
        """Make the model prefill inside the context, for prompts padded on the left, which are to be read at once."""
        rows_N = mask_BT.any(dim=1).nonzero()[:, 0]
        at_N = rows_N * ids_BT.shape[1] + mask_BT.long().argmax(dim=1)[rows_N]
        with as_stage(self.model, self._prefill_steps):
            table = first_tokens_in(self._modules, self.plan)
            if table is not None:
                firsts = Firsts(ids_BT.flatten()[at_N], at_N)
                give_first_tokens(self._prefill_steps, table, firsts, self._kv_of_first, self.model.layout.kv)
            yield

    @cached_property
    def _kv_of_first(self) -> dict[int, nn.Module]:
        """What makes the K/V of first tokens in those of prefill's steps, by number, where it is not what runs there."""
        made = (kv_of_first(self.model, self.plan, step.layer, self._modules) for step in self._prefill_steps)
        return {number: maker for number, maker in enumerate(made) if maker is not None}

    @cached_property
    def _decode_steps(self) -> list[Step]:
        return steps_of(self.model, self.plan, "decode", self._modules)

    @property
    def _decode_runs(self) -> tuple[object, ...]:
        """What decode computes, given the same K/V; modules by their id, as long as this pair holds them."""
        return self.first_token, *((id(step.module), step.layer) for step in self._decode_steps)

    @contextmanager
    def _as_decode(self, handed: HandedOver) -> Iterator[None]:
        """Make the model decode inside the context, which starts from what it was handed."""
        with as_stage(self.model, self._decode_steps):
            give_selections(self.model, self._decode_steps, handed)
            yield

    @contextmanager
    def _decoding(
        self, prompt: Sequence[int], recompute: int | None, prefilled: Prefilled | None
    ) -> Iterator[tuple[HandedOver, Tensor]]:
        """Run prefill, unless it has run; inside, the model is decode. Gives what it starts from and the prompt's last logits."""
        handed_over = tuple(prompt[: len(prompt) - self._recomputed(recompute)])
        read = self._prefill(handed_over) if prefilled is None else prefilled
        assert read.tokens == handed_over
        handed, logits_V, again = self.hand_over(read), read.logits_V, prompt[len(handed_over) :]
        del read  # with K/V as large as those that decode now has
        with self._as_decode(handed):
            yield handed, self._forward(again, handed.cache) if again else logits_V

    @contextmanager
    def _decoding_batch(
        self, beside: Sequence[TwoPhaseModel], ids_BT: Tensor, mask_BT: Tensor
    ) -> Iterator[tuple[HandedOver, Tensor]]:
        """Run prefill on padded prompts, that of other pairs, too; inside, the model is decode.

        Gives what that starts from, and the logits behind each prompt, those of one pair behind those of another.
        """
        again, pairs = self._recomputed(None), (self, *beside)
        read = ids_BT.shape[1] - again
        begun = [pair._read_all(ids_BT[:, :read], mask_BT[:, :read]) for pair in pairs if read]  # noqa: SLF001 - more of these
        handed = joined([of_pair for of_pair, _ in begun], _new_cache())
        with self._as_decode(handed):
            if again:
                last_BT, all_BT = (each_BT.repeat(len(pairs), 1) for each_BT in (ids_BT[:, read:], mask_BT))
                yield handed, self._read(last_BT, all_BT, handed.cache)
            else:
                yield handed, torch.cat([logits_BV for _, logits_BV in begun])

    def _read_all(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[HandedOver, Tensor]:
        """Run prefill on all of padded texts; return what decode starts from, and the logits `[B, V]` behind them.

        Texts of about one length are read together, so that little of what is read is padding.
        """
        width, groups = ids_BT.shape[1], of_about_one_length(mask_BT.sum(dim=1).tolist())
        handed, logits = [], []
        for rows in groups:
            longest = int(mask_BT[rows].sum(dim=1).max()) or 1
            ids_bT, mask_bT = ids_BT[rows, -longest:], mask_BT[rows, -longest:]
            cache = _new_cache()
            with self._as_prefill(ids_bT, mask_bT):
                logits.append(self._read(ids_bT, mask_bT, cache))
            handed.append(self._selected(cache, mask_bT))
            handed[-1].pad_to(width)
        whole, order = joined(handed, _new_cache()), torch.tensor([row for rows in groups for row in rows]).argsort()
        whole.keep_rows(order)
        return whole, torch.cat(logits)[order]

    def _recomputed(self, recompute: int | None) -> int:
        least = 1 if self.first_token == "decode" else 0
        if recompute is None:
            return least
        if recompute < least or (least == 0 and recompute > 0):
            raise PdtrimError(f"recompute = {recompute} does not go with first_token = '{self.first_token}'")
        return recompute

    def _prefill(self, tokens: Sequence[int]) -> Prefilled:
        """Run prefill."""
        cache, logits_V = _new_cache(), torch.empty(0)
        if tokens:
            ids_BT = torch.tensor([list(tokens)], device=self.model.device)
            with self._as_prefill(ids_BT, torch.ones_like(ids_BT)):
                logits_V = self._forward(tokens, cache)
        return Prefilled(tuple(tokens), cache, logits_V)

    def hand_over(self, prefilled: Prefilled) -> HandedOver:
        """Return what decode starts from: its own copy."""
        if not prefilled.tokens:
            return HandedOver(_new_cache())
        return self._selected(prefilled.cache, torch.ones(1, len(prefilled.tokens), dtype=torch.long, device=self.model.device))

    def _prefill_batch(self, ids_BT: Tensor, mask_BT: Tensor, options: dict[str, Any]) -> tuple[Tensor, HandedOver]:
        """Run prefill; return the prompts, with their first token where prefill makes it, and what decode starts from."""
        cache, width = _new_cache(), ids_BT.shape[1]
        if self.first_token == "decode" and width == 1:
            return ids_BT, HandedOver(cache)
        read = width - (self.first_token == "decode")
        with self._as_prefill(ids_BT[:, :read], mask_BT[:, :read]):
            if self.first_token == "prefill":
                one_more = {**options, "max_length": width + 1}
                ids_BT = self.model.model.generate(ids_BT, attention_mask=mask_BT, past_key_values=cache, **one_more)
            else:
                self._read(ids_BT[:, :read], mask_BT[:, :read], cache)
        return ids_BT, self._selected(cache, mask_BT[:, :read])

    def _read(self, ids_BT: Tensor, mask_BT: Tensor, cache: Any) -> Tensor:
        """Run padded texts on top of a cache, and return the logits `[B, V]` behind them.

        `mask_BT` covers what is in the cache, too; each text counts its positions from its own first token.
        """
        model = self.model.model
        positions: dict[str, Tensor] = {}
        if "position_ids" in inspect.signature(model.forward).parameters:
            positions["position_ids"] = (mask_BT.long().cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        given = {"input_ids": ids_BT, "attention_mask": mask_BT, "past_key_values": cache, **positions}
        logits_BV: Tensor = model(use_cache=True, logits_to_keep=1, **given).logits[:, -1]
        return logits_BV

    def _selected(self, cache: Any, mask_BT: Tensor) -> HandedOver:
        """Return what decode starts from: of prefill's K/V, those of the blocks that decode keeps, and of the tokens it reads.

        `mask_BT` is 0 where the prompts that prefill read are padded.
        """
        handed = HandedOver(_new_cache())
        for number, step in entries_of(self._prefill_steps):
            entry = cache.layers[number]
            slot, selection = step.layer.kv_slot, step.layer.selection
            if slot is not None:
                kept = [head for head in range(entry.keys.shape[1]) if head not in step.layer.sliced_places]
                keys, values = entry.keys[:, kept].clone(), entry.values[:, kept].clone()
                if selection is not None:
                    unread_BN = handed.unread[slot] = unread_of(mask_BT, selection)
                    for tensor in (keys, values):
                        tensor.masked_fill_(unread_BN[:, None, :, None].to(tensor.device), 0)
                handed.cache.update(keys, values, slot)
        return handed

    def _forward(self, tokens: Sequence[int], cache: Any) -> Tensor:
        """Run tokens on top of a cache; return the logits behind the last one, in float32."""
        ids = torch.tensor([list(tokens)], device=self.model.device)
        # One position of the head is the least that models compute.
        logits: Tensor = self.model.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[0, -1].float().cpu()


def _new_cache() -> Any:
    from transformers import DynamicCache  # noqa: PLC0415 - slow to import, and only generation wants it

    # A cache that knows the config cuts sliding windows and then loses the length; a plain one keeps everything.
    return DynamicCache()


def stop_tokens(model: BlockModel) -> set[int]:
    """Return the tokens that end a text."""
    config = getattr(model.model, "generation_config", None) or model.config
    stop = getattr(config, "eos_token_id", None)
    return {token for token in (stop if isinstance(stop, list) else [stop]) if token is not None}
