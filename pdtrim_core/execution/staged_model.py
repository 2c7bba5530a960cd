"""A model under a plan, scored: both stages in one pass, each token in its own. Generation is in `two_phase`.

Attention is causal, so a prompt never sees what follows it. Both stages share one pass over prompt and continuation: where
they differ, the prompt's tokens take prefill's branch and the others take decode's. The K/V that continuation tokens
attend to are then exactly those that prefill would have shipped.

Shape suffixes: B batch, T token, P rows and Q tokens of the prompts that prefill reads, D hidden, N positions where the
logits count, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pdtrim_core.data.items import Along, Item
from pdtrim_core.execution.distributions import distances, divergence, likeliest, logprobs, normaliser, overlap
from pdtrim_core.execution.first_tokens import first_tokens_in, kv_of_first
from pdtrim_core.execution.look_ahead import LookAhead
from pdtrim_core.execution.prefix_cache import Branch, Path, Place, PrefixCache, PreparedBatch
from pdtrim_core.execution.prompt_kv import kv_made_by, same_kv, with_heads
from pdtrim_core.execution.selected_kv import check_masks, selected_call, unread_in
from pdtrim_core.execution.stage_modules import Modules, checked_modules, module_of
from pdtrim_core.model.block_calls import Call
from pdtrim_core.model.logits_head import HEAD_NUMBERS
from pdtrim_core.model.passes import Pass, result_of, results_of
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import LayerOf, Plan

Replacements = Modules
Beside = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""What is made of two sets of distributions; see `StagedModel._beside_dense`."""


class Scored(NamedTuple):
    """The summed log-probability (nats) of a choice, and whether each of its tokens is the one that is likeliest there."""

    logprob: float
    greedy: bool


class ComparedToken(NamedTuple):
    """A plan beside the dense model at one token of a continuation: the two distributions that the token is drawn from.

    `divergence` is KL(dense || plan) in nats, `same` whether both find the same token likeliest, `overlap` the sum over the
    vocabulary of the smaller of the two probabilities, which is the chance that a draft token of the plan is accepted by the
    dense model in speculative decoding. `logprob` and `dense_logprob` are those of the token itself, in nats.
    """

    divergence: float
    same: bool
    overlap: float
    logprob: float
    dense_logprob: float


class StagedModel:
    """A model under a plan. Making one is cheap; the prefix cache holds what plans share.

    `replacements` has a module for every merge of the plan. `ahead` has hidden states that were made together with those of other
    plans (see `look_ahead`). Raises `PlanError` for a plan that does not fit.
    """

    def __init__(
        self,
        prefix_cache: PrefixCache,
        plan: Plan,
        replacements: Replacements | None = None,
        *,
        ahead: LookAhead | None = None,
    ) -> None:
        plan.check_fits(prefix_cache.model.block_count)
        self.plan = plan
        self._prefix_cache = prefix_cache
        self._model = prefix_cache.model
        self._modules = checked_modules(plan, replacements)
        self._ahead = ahead
        if plan.selections:
            check_masks(self._model)

    def loglikelihoods(self, items: Sequence[Item]) -> list[tuple[float, ...]]:
        """Return for each item the summed log-probability (nats) of each of its choices behind the prompt."""
        return [tuple(scored.logprob for scored in choices) for choices in self._scored(items, greedy=False)]

    def scores(self, items: Sequence[Item]) -> list[tuple[Scored, ...]]:
        """Return for each item its choices' log-probabilities, as `loglikelihoods` does, and whether each is decoded greedily."""
        return self._scored(items, greedy=True)

    def _scored(self, items: Sequence[Item], *, greedy: bool) -> list[tuple[Scored, ...]]:
        found: dict[Item, list[Scored]] = {}
        batches = self._prefix_cache.batches(items)
        hidden = self._hidden_of([prepared for _, prepared in batches])
        for group, prepared in batches:
            with torch.inference_mode():
                logprobs, firsts = self._targets(prepared, next(hidden), greedy=greedy)
            of_group = [[Scored(0.0, greedy)] * len(item.choices) for item in group]
            for (item, choice), logprob, first in zip(prepared.batch.owners, logprobs.tolist(), firsts.tolist(), strict=True):
                before = of_group[item][choice]
                of_group[item][choice] = Scored(before.logprob + logprob, before.greedy and first)
            found.update(zip(group, of_group, strict=True))
        return [tuple(found[item]) for item in items]

    def _hidden_of(self, batches: Sequence[PreparedBatch], *, beside_dense: bool = False) -> Iterator[Tensor]:
        """Return for each batch the hidden states of the plan where logits count, behind those of the dense model if wanted."""
        passes: dict[Hashable, Pass[Tensor]] = {}
        for prepared in batches:
            if beside_dense:
                passes[id(prepared), None] = prepared.dense_hidden_pass()
            passes[id(prepared), self.path] = self.targets_pass(prepared)
        if self._ahead is not None:
            return self._ahead.results_of(passes)
        return results_of(passes.values(), together=self._model.streams)

    def _targets(self, prepared: PreparedBatch, hidden_ND: Tensor, *, greedy: bool) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each target token of a batch, in float32, and whether no other is likelier there.

        The second is only computed with `greedy`.
        """
        batch = prepared.batch

        def scored(logits_NV: Tensor, start: int) -> tuple[Tensor, Tensor]:
            here = (batch.target_at >= start) & (batch.target_at < start + len(logits_NV))
            at = (batch.target_at[here] - start).to(logits_NV.device)
            targets = batch.targets[here].to(logits_NV.device)
            # log_softmax in float32 is off by about 1e-5 a token, always in the same direction; logsumexp is not.
            logprobs = logits_NV[at, targets].float() - normaliser(logits_NV)[at]
            first = likeliest(logits_NV, at, targets) if greedy else torch.zeros_like(at, dtype=torch.bool)
            # In one piece, for which the host waits once.
            return here, torch.stack([logprobs, first.float()]).cpu()

        both = torch.zeros(2, len(batch.targets), dtype=torch.float32)
        for here, of_these in self._model.map_logits(hidden_ND, scored):
            both[:, here] = of_these
        return both[0], both[1].bool()

    def divergences(self, items: Sequence[Item], along: Along = "both") -> list[float]:
        """Return for each item how far this plan is from the dense model, 0 or more.

        It is the mean, over the tokens of `item.continuations(along)`, of KL(dense || plan) in nats between the two
        distributions of the next token. Other choices are not run.
        """
        if self.is_dense:
            return [0.0] * len(items)
        return [math.fsum(own) / len(own) for own in self._beside_dense(items, along, _divergences)]

    def overlaps(self, items: Sequence[Item], along: Along = "both") -> list[float]:
        """Return for each item how much this plan's distributions have in common with the dense model's, 0 to 1.

        It is the mean, over the tokens of `item.continuations(along)`, of the sum over the vocabulary of the smaller of the two
        probabilities of the next token. Other choices are not run.
        """
        if self.is_dense:
            return [1.0] * len(items)
        return [math.fsum(own) / len(own) for own in self._beside_dense(items, along, _overlaps)]

    def compared(self, items: Sequence[Item]) -> list[tuple[ComparedToken, ...]]:
        """Return for each item how this plan and the dense model differ at each token of its right choice, in order."""
        of_items = self._beside_dense(items, "right", _comparisons)
        return [tuple(ComparedToken(d, bool(same), *rest) for d, same, *rest in of_tokens) for of_tokens in of_items]

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense model itself, which nothing has to run to compare with itself."""
        return self.plan == Plan() and not self._modules and self._prefix_cache.of_dense is self._prefix_cache

    def _beside_dense(self, items: Sequence[Item], along: Along, function: Beside) -> list[list[Any]]:
        """Return for each item what a function makes of the two distributions at each token of its continuations.

        The function is given the log-probabilities `[N, V]` of the dense model and of the plan at some positions, which it does
        not change, and of some targets their positions among these and their tokens; it returns a row a target. Other choices
        are not run.
        """
        right = {item: item.continued(along) for item in items}
        found: dict[Item, list[Any]] = {}
        batches = self._prefix_cache.batches(list(right.values()))
        hidden = self._hidden_of([prepared for _, prepared in batches], beside_dense=True)
        for group, prepared in batches:
            with torch.inference_mode():
                next(hidden)  # the dense model's, which the batch keeps
                of_targets = self._at_targets(prepared, next(hidden), function)
            for number, item in enumerate(group):
                found[item] = [row for (owner, _), row in zip(prepared.batch.owners, of_targets, strict=True) if owner == number]
        return [found[right[item]] for item in items]

    def _at_targets(self, prepared: PreparedBatch, hidden_ND: Tensor, function: Beside) -> list[Any]:
        """Return what a function makes of the distributions that each target token of a batch is drawn from; a row a target."""
        batch = prepared.batch
        # Two sets of logits are held, so each has half the positions that one may have.
        step = max(1, HEAD_NUMBERS // self._model.config.vocab_size // 2)
        rows: dict[int, Any] = {}
        for start in range(0, len(hidden_ND), step):
            here = ((batch.target_at >= start) & (batch.target_at < start + step)).nonzero()[:, 0]
            dense_NV = prepared.dense_logprobs(start, start + step)
            at, targets = (values[here].to(dense_NV.device) for values in (batch.target_at - start, batch.targets))
            found = function(dense_NV, logprobs(self._model, hidden_ND[start : start + step]), at, targets)
            rows.update(zip(here.tolist(), found.tolist(), strict=True))
        return [rows[number] for number in range(len(batch.targets))]

    def hidden_at_targets(self, prepared: PreparedBatch, *, recompute: bool = False) -> Tensor:
        """Return the hidden states `[N, D]` behind the last block that counts, where the logits of a batch count.

        With `recompute` what gradients need of a block is computed again when they reach it, and not kept until then.
        """
        return result_of(self.targets_pass(prepared, recompute=recompute))

    def targets_pass(self, prepared: PreparedBatch, *, recompute: bool = False) -> Pass[Tensor]:
        """Return the pass that makes the hidden states of `hidden_at_targets`."""
        hidden_BTD = yield from self._pass(prepared, recompute=recompute)
        return hidden_BTD[prepared.batch.at_row, prepared.batch.at_column]

    def _pass(self, prepared: PreparedBatch, *, recompute: bool = False) -> Pass[Tensor]:
        """Return the pass that makes the hidden states behind the last block that counts, `[B, T, D]`."""
        path = self.path
        done, hidden = prepared.nearest(path)
        for number in range(done, len(path)):
            prepared.keep(path[:number], hidden)
            if recompute:
                hidden = checkpoint(self._step, prepared, path[number], hidden, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = yield from self.step_pass(prepared, path[number], hidden)
        return hidden

    @cached_property
    def path(self) -> Path:
        """What the two stages run, position by position."""
        count = self._model.block_count
        prefill, decode = self.plan.layers("prefill", count), self.plan.layers("decode", count)
        # Where decode makes every token, nothing behind its last block counts.
        end = count if self._prefix_cache.first_token == "prefill" else decode[-1].blocks[-1] + 1
        kv, firsts = self._prompt_kv(prefill, decode), first_tokens_in(self._modules, self.plan)
        places, index = [], 0
        while index < end:
            # A place covers one block, or all blocks for which one of the stages has a single layer.
            stop = max((layer.blocks[-1] for layer in (*prefill, *decode) if layer.block == index), default=index) + 1
            branches = (self._branch("prefill", prefill, index, stop), self._branch("decode", decode, index, stop))
            selection = next((layer.selection for layer in decode if layer.block == index), None)
            place = Place(index, *branches, kv.get(index), selection=selection)
            if firsts is not None and any(firsts.covers(block) for block in range(index, stop)):
                place = place._replace(firsts=firsts, kv_of_first=self._kv_of_first(prefill, index))
            places.append(place)
            index = stop
        return tuple(places)

    @property
    def own_modules(self) -> list[nn.Module]:
        """What this plan runs in the place of the model's own blocks."""
        runs = [run for place in self.path for run in (*place.prefill, *place.decode)]
        return [module for _, module in runs if module is not None]

    def _kv_of_first(self, prefill: Sequence[Layer], block: int) -> nn.Module | None:
        feeding = (layer for layer in prefill if layer.block == block and layer.kv_slot is not None)
        return next((kv_of_first(self._model, self.plan, layer, self._modules) for layer in feeding), None)

    def _branch(self, stage: Stage, layers: Sequence[Layer], start: int, stop: int) -> Branch:
        """Return what one stage runs from one block up to another; a block as it is has no module of its own."""
        return tuple(self._run_by(stage, layer) for layer in layers if layer.runs and start <= layer.block < stop)

    def _run_by(self, stage: Stage, layer: Layer) -> tuple[int, nn.Module | None]:
        module = module_of(self._model, self.plan, stage, layer, self._modules)
        return layer.like, None if module is self._model.blocks[layer.block] else module

    def _prompt_kv(self, prefill: Sequence[Layer], decode: Sequence[Layer]) -> dict[int, nn.Module]:
        """Return prefill's modules whose weights for K/V were recovered apart from decode's, by the block of decode's layer."""
        found = {}
        reading = [layer for layer in decode if layer.has_kv]
        for layer in prefill:
            if layer.kv_slot is None:
                continue
            ends: tuple[tuple[Stage, Layer], ...] = (("prefill", layer), ("decode", reading[layer.kv_slot]))
            if any(LayerOf.at(self.plan, stage, end) in self._modules for stage, end in ends):
                maker, reader = (module_of(self._model, self.plan, stage, end, self._modules) for stage, end in ends)
                if layer.sliced_heads:
                    count = self._model.units(layer.block).count("attention") - len(layer.removed_kv_heads)
                    heads = [head for head in range(count) if head not in layer.sliced_places]
                    maker = with_heads(maker, self._model.layout.kv[1:3], heads, count)
                if not same_kv(maker, reader, self._model.layout.kv):
                    found[reading[layer.kv_slot].block] = maker
        return found

    def _step(self, prepared: PreparedBatch, place: Place, hidden_BTD: Tensor) -> Tensor:
        return result_of(self.step_pass(prepared, place, hidden_BTD))

    def step_pass(self, prepared: PreparedBatch, place: Place, hidden_BTD: Tensor) -> Pass[Tensor]:
        """Return the pass through one position of the path in both stages: each token takes the branch of its stage."""
        prefill, decode, prompts = place.prefill, place.decode, prepared.batch.prompts
        hidden_BTD = self._given(prepared, place, hidden_BTD)
        if decode:
            yield decode[0][0]
        decoded_BTD = self._decoded(prepared, place, hidden_BTD)
        if prompts is None or (prefill == decode and place.kv is None):
            return decoded_BTD
        # Where the stages differ, decode runs at most one block (`Plan` checks this), so its K/V of the prompt are computed
        # from the hidden states in front of this place, as prefill computes them.
        assert len(decode) <= 1
        # What goes through a block may come out on another device than what passes it by.
        read_PQD = hidden_BTD.flatten(0, 1)[prompts.source_PQ.to(hidden_BTD.device)]
        for number, branch in enumerate(prefill):
            if number and place.firsts is not None:
                # Behind the first of several, each is a block of the model.
                read_PQD = place.firsts.put(read_PQD, branch[0], prompts.own_firsts)
            yield branch[0]
            read_PQD = self._run((branch,), read_PQD, prepared.prompt_recording.calls)
        read_ND = read_PQD.flatten(0, 1)[prompts.real_N.to(read_PQD.device)].to(decoded_BTD.device)
        at_N = prompts.places.to(decoded_BTD.device)
        return self._model.waiting(decoded_BTD.flatten(0, 1).index_copy(0, at_N, read_ND).view_as(decoded_BTD))

    def decoded(self, prepared: PreparedBatch, place: Place, hidden_BTD: Tensor) -> Tensor:
        """Return what decode makes of hidden states at a place; only at its own tokens is that what the pair computes."""
        return self._decoded(prepared, place, self._given(prepared, place, hidden_BTD))

    def _given(self, prepared: PreparedBatch, place: Place, hidden_BTD: Tensor) -> Tensor:
        """Return the hidden states in front of a place with those of the prompts' first tokens that are known there."""
        if place.firsts is None or prepared.batch.prompts is None:
            return hidden_BTD
        return place.firsts.put(hidden_BTD, place.block, prepared.batch.prompts.firsts)

    def _decoded(self, prepared: PreparedBatch, place: Place, hidden_BTD: Tensor) -> Tensor:
        with self._reading(place, prepared):
            return self._run(place.decode, hidden_BTD, self._calls(place, prepared))

    def _calls(self, place: Place, prepared: PreparedBatch) -> Sequence[Call]:
        """Return the calls of blocks in which decode's tokens look at what is selected for them at a place, and no more.

        The prompts' own tokens look as they always do, so that what both stages run alike is still run once.
        """
        calls, prompts = prepared.recording.calls, prepared.batch.prompts
        if place.selection is None or prompts is None:
            return calls
        rows, width = prepared.batch.rows.ids_BT.shape
        unread_BQK = unread_in(prompts.spans, width, rows, place.selection)
        ((index, _),) = place.decode
        return [selected_call(self._model, call, unread_BQK) if at == index else call for at, call in enumerate(calls)]

    @contextmanager
    def _reading(self, place: Place, prepared: PreparedBatch) -> Iterator[None]:
        """Let decode's layer at a place read K/V of the prompt that another module makes, where they are not its own."""
        prompts = prepared.batch.prompts
        if prompts is None or (place.kv is None and place.kv_of_first is None):
            yield
            return
        ((index, module),) = place.decode
        reader = self._model.blocks[index] if module is None else module
        at_N, firsts_N = prompts.places, prompts.places[:0]
        if place.firsts is not None and place.kv_of_first is not None:
            firsts_N = place.firsts.known(prompts.firsts)
            at_N = at_N[~torch.isin(at_N, firsts_N)]
        with (
            kv_made_by(place.kv or reader, reader, self._model.layout.kv, at_N),
            kv_made_by(place.kv_of_first or reader, reader, self._model.layout.kv, firsts_N),
        ):
            yield

    def _run(self, branch: Branch, hidden_BTD: Tensor, calls: Sequence[Call]) -> Tensor:
        for block, module in branch:
            hidden_BTD = self._model.run(block, hidden_BTD, calls, module)
        return hidden_BTD


def _divergences(dense_NV: Tensor, plan_NV: Tensor, at: Tensor, targets: Tensor) -> Tensor:
    """Return KL(dense || plan) at each target."""
    del targets
    return divergence(dense_NV, plan_NV)[at]


def _overlaps(dense_NV: Tensor, plan_NV: Tensor, at: Tensor, targets: Tensor) -> Tensor:
    """Return the overlap of the two distributions at each target."""
    del targets
    return overlap(dense_NV, plan_NV)[at]


def _comparisons(dense_NV: Tensor, plan_NV: Tensor, at: Tensor, targets: Tensor) -> Tensor:
    """Return the numbers of a `ComparedToken` at each target, `[target, 5]` in float64."""
    same_N = dense_NV.argmax(dim=-1) == plan_NV.argmax(dim=-1)
    divergence_N, overlap_N = distances(dense_NV, plan_NV)
    return torch.stack([divergence_N[at], same_N[at], overlap_N[at], plan_NV[at, targets], dense_NV[at, targets]], dim=1).double()
