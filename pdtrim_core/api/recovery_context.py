"""What a recovery is given: the pair, texts that it may learn from, and the ways to change a layer.

Shape suffixes: N positions of continuation tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.first_tokens import depths_of, first_tokens_of
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache, PreparedBatch
from pdtrim_core.execution.stage_walk import WalkedLayer, Wants, all_wanted, walk
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.walked import Walked
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import FirstTokensOf, Plan

KEPT_BYTES = 2**28
"""Hidden states of the dense model that batches keep at most, so that the pair is not run up to where it is another one."""


def _say_nothing(text: str) -> None:
    del text


def _note_nothing(number: float) -> None:
    del number


@dataclass(frozen=True)
class RecoveryContext:
    """The pair with what earlier recoveries made of it, and texts to learn from.

    `texts` are prompts, each with one continuation; none of them measures. `check` are others like them: the run keeps what a
    recovery did only where the pair is nearer to the dense model on these, so nothing may be computed from them, but a training
    may ask for the `divergence` on them to stop. `folder` is kept from one try of a run to the next, for what a long training
    has reached. `note` says something to the user, `lost` takes the loss of each step of a training. `reached` takes the share of
    the work that is done, 0 to 1, so that people see how long it will take; a walk tells that by itself. `openings` are
    tokens that prompts begin with, the surest first: those of the tokenizer and of its chat template, then those of the recipe's
    items by how often they do. Contexts with the same `check` may share a `checking`, so that the dense model runs these once.
    """

    pair: Walked
    check: Sequence[Item]
    rng: Random
    folder: Path
    note: Callable[[str], None] = _say_nothing
    lost: Callable[[float], None] = _note_nothing
    reached: Callable[[float], None] = _note_nothing
    openings: Sequence[int] = ()
    checking: PrefixCache | None = field(default=None, repr=False, compare=False)

    @property
    def model(self) -> BlockModel:
        """The dense model, which must be left as it is."""
        return self.pair.model

    @property
    def plan(self) -> Plan:
        """What each stage loses."""
        return self.pair.plan

    @property
    def texts(self) -> Sequence[Item]:
        """Prompts, each with one continuation."""
        return self.pair.items

    @property
    def unified(self) -> bool:
        """Whether both stages lose the same: they are then one model, and what changes in decode changes in prefill, too."""
        return self.pair.unified

    def layers(self, stage: Stage) -> tuple[Layer, ...]:
        """Return what a stage runs, and which K/V it computes, in order."""
        return self.pair.layers(stage)

    def module(self, stage: Stage, layer: Layer) -> nn.Module:
        """Return what a layer of a stage runs now; it must not be changed in place."""
        return self.pair.module(stage, layer)

    def change(self, stage: Stage, layer: Layer, weights: Mapping[str, Tensor]) -> None:
        """Give a layer other weights, by their names in the block.

        Raises `PdtrimError` for a weight that the layer does not have, or that has another shape.
        """
        self.pair.change(stage, layer, weights)

    def keep_first_tokens(self, tokens: Iterable[int], *, others: bool = False) -> bool:
        """Let prefill know the hidden states of some tokens, as the first ones of prompts, from a table; tell whether it has one.

        The dense model makes the table, so that the K/V of such a token are the dense model's wherever prefill has a layer. With
        `others`, any other first token is given the mean of the states in it. The table takes the place of an earlier one. There
        is none where prefill loses nothing in front of a layer, and where both stages are one model.
        """
        depths, tokens = depths_of(self.plan, self.model.block_count), list(tokens)
        if not tokens or not depths or self.unified:
            return False
        self.pair.modules[FirstTokensOf(self.plan)] = first_tokens_of(self.model, tokens, depths, others=others)
        return True

    def walk(
        self,
        stage: Stage,
        part: tuple[int, int] = (0, 1),
        wants: Wants = all_wanted,
        *,
        texts: Sequence[Item] | None = None,
    ) -> Iterator[WalkedLayer]:
        """Return the layers of a stage one by one, from shallow to deep, with its hidden states beside the dense model's.

        A layer that is changed on the way is run with its new weights by those behind it. Of decode it is the tokens that follow
        the prompts, whose K/V are prefill's; of prefill those of the prompts. `part` says which walk this is, counted from 0, of
        how many that are made. Layers that `wants` says no to are passed, and the walk ends behind the last one that is wanted.
        A walk on `texts`, some of all, is a step of a training, and tells no share of the work.
        """
        number, count = part
        if texts is not None:
            return walk(replace(self.pair, items=texts), stage, wants, note=self.note)
        return walk(self.pair, stage, wants, note=self.note, reached=lambda share: self.reached((number + share) / count))

    def trial(self) -> RecoveryContext:
        """Return the same pair apart: what is changed in it changes nothing here.

        A module that the trial's `change` made is its own, and may be changed in place, such as by a training.
        """
        # What is kept is of the dense model, and so the same for both.
        return replace(self, pair=replace(self.pair, modules=dict(self.pair.modules)), checking=self._checking)

    def batches(self, texts: Sequence[Item] | None = None) -> list[PairBatch]:
        """Return texts, or some of them, as batches in which the pair can be run beside the dense model."""
        options = ExecutionOptions(self.pair.first_token, self.pair.batch_tokens, budget=KEPT_BYTES, reuse_plans=False)
        cache = PrefixCache(self.model, options)
        return [PairBatch(self, cache, group, prepared) for group, prepared in cache.batches(texts or self.texts)]

    def divergence(self) -> float:
        """Return how far the pair is from the dense model on the texts to check with: KL(dense || pair) in nats a token.

        Raises `PdtrimError` where there are none.
        """
        if not self.check:
            raise PdtrimError("there are no texts to check with: give the context some, which nothing is computed from")
        divergences = self.staged.divergences(self.check)
        return sum(divergences) / len(divergences)

    @property
    def staged(self) -> StagedModel:
        """The pair with the weights that it has now."""
        return StagedModel(self._checking, self.plan, self.pair.modules)

    @cached_property
    def _checking(self) -> PrefixCache:
        return checking(self.pair) if self.checking is None else self.checking


def checking(pair: Walked) -> PrefixCache:
    """Return what pairs of one model are checked in; of the dense model it keeps what it gives, and of pairs nothing.

    Recovered weights change all that lies behind them.
    """
    options = ExecutionOptions(first_token=pair.first_token, batch_tokens=pair.batch_tokens, budget=0)
    return PrefixCache(pair.model, options)


class PairBatch:
    """Some texts: prompts that prefill reads, and what decode is to write behind them."""

    def __init__(self, context: RecoveryContext, cache: PrefixCache, texts: Sequence[Item], prepared: PreparedBatch) -> None:
        self._context = context
        self._cache = cache
        self._prepared = prepared
        self.texts = tuple(texts)

    @property
    def tokens(self) -> int:
        """How many tokens decode is to write."""
        return len(self._prepared.batch.targets)

    def dense(self) -> Tensor:
        """Return the dense model's hidden states `[N, D]` behind its last block, in front of each token that is written."""
        # Not in inference mode: what is kept of them on the way may be what gradients of the pair begin with.
        with torch.no_grad():
            return self._prepared.dense_hidden.clone()

    def pair(self, *, recompute: bool = False) -> Tensor:
        """Return those of the pair, with the weights that it has now; gradients flow to those that require them.

        The prompts' hidden states and K/V are prefill's: through the K/V that decode reads gradients flow to prefill's weights,
        where a trial was given some that require them, or both stages are one model.
        With `recompute` each block is computed again when gradients reach it, which takes less memory and more time.
        """
        staged = StagedModel(self._cache, self._context.plan, self._context.pair.modules)
        return staged.hidden_at_targets(self._prepared, recompute=recompute)
