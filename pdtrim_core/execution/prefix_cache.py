"""Keeps hidden states that plans share: a candidate begins where it first differs from the dense model and earlier plans.

Shape suffixes: B batch, T token, D hidden, N positions where the logits count.
"""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, nn

from pdtrim_core.data.items import Item
from pdtrim_core.execution.batching import ROW_TOKENS, Batch, RowLayout, Rows
from pdtrim_core.execution.distributions import logprobs
from pdtrim_core.execution.first_tokens import FirstTokens
from pdtrim_core.execution.grouping import RowShape, group_by_length
from pdtrim_core.model.block_model import BlockModel, Recording
from pdtrim_core.model.passes import Pass, result_of
from pdtrim_core.model.placement import free_memory
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.plan.selections import Selection

SHARE_OF_FREE_MEMORY = 0.25
PLANS_BY_DEFAULT = 2
"""Whole plans whose hidden states are kept unless a budget is given: the one that a search is at, and its last candidate."""
PACKING_TOLERANCE = 1e-3
"""Largest difference of a choice's log-probability (nats) at which packed rows count as the same; mixed-up masks or
positions give whole nats, rounding gives 1e-5."""

Branch = tuple[tuple[int, nn.Module | None], ...]
"""What one stage runs at one position of a path: blocks by index, or replacement modules called with that block's arguments."""


class Place(NamedTuple):
    """One position of a path: a block, or the blocks of a merge, with what each stage runs there.

    `kv` is the module that makes the K/V of the prompt which decode reads there, where its weights for them are others than
    those of decode's own module. `firsts` is the table that has the hidden states of the prompts' first tokens in front of a
    block here, and `kv_of_first` makes the K/V of those tokens, where that is not what makes those of the other ones.
    `selection` says which tokens of prompts decode reads there, None for all.
    """

    block: int
    prefill: Branch
    decode: Branch
    kv: nn.Module | None = None
    firsts: FirstTokens | None = None
    kv_of_first: nn.Module | None = None
    selection: Selection | None = None


Path = tuple[Place, ...]
"""What the two stages run, from block 0 on. Plans whose paths begin the same share their hidden states up to there."""


@dataclass(frozen=True)
class ExecutionOptions:
    """How items are laid out in batches, and how much is kept of them; nothing here but `first_token` changes a number.

    `first_token` is the stage that makes the first output token. `batch_tokens` are the tokens a batch, None what suits the
    device. `budget` are the bytes for hidden states that plans share, and for the dense model's log-probabilities; with
    `reuse_plans` what the dense model leaves of it holds the hidden states of the plans that were measured last. None is a
    quarter of the free memory; of hidden states then no more are kept than the dense model's at all depths and as much again
    for each of two plans: more brings little. `share` is the part of all that which is taken: processes side by side have one
    memory. `packed` lets the choices of an item, and several items, share a row,
    `shared_tokens` the tokens that choices begin with.
    """

    first_token: FirstToken = "decode"
    batch_tokens: int | None = None
    budget: int | None = None
    share: float = 1.0
    packed: bool = False
    shared_tokens: bool = True
    reuse_plans: bool = True


class PrefixCache:
    """Batches of items with hidden states that plans share, kept for all plans that are measured.

    The dense model's are kept at evenly spaced depths, as many as the budget holds. `dense` is the model that divergences are
    computed against where `model` has replaced it.
    """

    def __init__(self, model: BlockModel, options: ExecutionOptions | None = None, *, dense: BlockModel | None = None) -> None:
        options = options or ExecutionOptions()
        self.model = model
        self.first_token: FirstToken = options.first_token
        self.batch_tokens = options.batch_tokens or model.fitting_batch
        # Our mask has no sliding window in it, so a row with several things in it must be shorter than one.
        self._window = getattr(model.config, "sliding_window", None) or math.inf
        self._apart = RowLayout(options.first_token)
        width = int(min(ROW_TOKENS, self._window - 1))
        self._packed = RowLayout(options.first_token, width, options.shared_tokens) if options.packed else self._apart
        self._reuse_plans = options.reuse_plans
        budget = free_memory(model.device) * SHARE_OF_FREE_MEMORY if options.budget is None else options.budget
        self._budget = int(budget * options.share)
        self._plans_at_most = PLANS_BY_DEFAULT if options.budget is None else math.inf
        self._spent = self._on_logprobs = 0
        self._prepared: dict[tuple[Item, ...], PreparedBatch] = {}
        self.of_plans = PlanStates()
        of_dense = ExecutionOptions(batch_tokens=options.batch_tokens, budget=0)
        self._replaced = None if dense is None else PrefixCache(dense, of_dense)

    @property
    def of_dense(self) -> PrefixCache:
        """The prefix cache of the dense model, which is this one unless `model` has replaced it."""
        return self if self._replaced is None else self._replaced

    @property
    def packs(self) -> bool:
        """Whether choices and items may share a row."""
        return self._packed is not self._apart

    def groups(self, items: Sequence[Item]) -> list[tuple[Item, ...]]:
        """Return the items in groups that run as one batch each; a group's own grouping is itself."""
        return group_by_length(items, self.batch_tokens, self._shape)

    def batches(self, items: Sequence[Item]) -> list[tuple[tuple[Item, ...], PreparedBatch]]:
        """Return the items in groups with their prepared batches; a group that was seen before comes back as it was."""
        return [(group, self._prepare(group)) for group in self.groups(items)]

    def plans_at_once(self, items: Sequence[Item]) -> int:
        """Return of how many plans there is room for the hidden states of all items at one depth, at least one."""
        of_one = sum(prepared.recording.hidden_BTD.nbytes for _, prepared in self.batches(items))
        return max(1, int(self._budget - self.kept_bytes) // max(1, of_one))

    def _prepare(self, group: tuple[Item, ...]) -> PreparedBatch:
        if group not in self._prepared:
            batch = self._layout(group[0]).batch(group, self.model.device)
            self._prepared[group] = PreparedBatch(self.model, batch, self)
        return self._prepared[group]

    def _shape(self, item: Item) -> RowShape:
        return self._layout(item).shape(item)

    def _layout(self, item: Item) -> RowLayout:
        return self._packed if self._packed.shape(item).width < self._window else self._apart

    def forget(self) -> None:
        """Forget all batches and everything kept of them."""
        self._prepared.clear()
        self.of_plans.clear()
        self._spent = self._on_logprobs = 0

    def halve_batches(self) -> None:
        """Forget everything kept and lay items out in batches half as large from now on."""
        self.forget()
        self.batch_tokens //= 2

    def grant(self, wanted: int, depths: int) -> int:
        """Return at how many of `depths` depths a batch may keep its hidden states, `wanted` bytes each, and reserve them."""
        share = max(0, self._budget - self._spent)
        granted = min(depths, share // max(1, wanted))
        self._spent += granted * wanted
        return granted

    def grant_logprobs(self, wanted: int) -> bool:
        """Return whether a batch may keep so many bytes of the dense model's log-probabilities, and reserve them.

        They may take half of what the hidden states of the dense model leave; the rest is for those of plans.
        """
        granted = self._on_logprobs + wanted <= (self._budget - self._spent) // 2
        self._on_logprobs += wanted if granted else 0
        return granted

    @property
    def room_for_plans(self) -> int:
        """How many bytes the hidden states of plans may take: what the dense model leaves of the budget, or less by default."""
        left = self._budget - self._spent - self._on_logprobs
        return int(min(left, self._plans_at_most * self._spent)) if self._reuse_plans else 0

    @property
    def most_bytes(self) -> int:
        """How many bytes may be kept in all of the batches that were laid out until now."""
        of_logprobs = sum(prepared.logprob_bytes for prepared in self._prepared.values())
        most = self._spent + self.room_for_plans + of_logprobs
        return min(self._budget, most)

    @property
    def kept_bytes(self) -> int:
        """How many bytes are kept now: what is reserved for the dense model, and the hidden states of plans."""
        return self._spent + self._on_logprobs + self.of_plans.nbytes


class PlanStates:
    """Hidden states of the plans that were measured last, by batch and path; the least recently used are evicted first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, Path], Tensor] = OrderedDict()
        self._bytes = 0

    def find(self, batch: int, path: Path) -> Tensor | None:
        """Return the hidden states of a batch behind a path, if they are kept."""
        found = self._kept.get((batch, path))
        if found is not None:
            self._kept.move_to_end((batch, path))
        return found

    def keep(self, batch: int, path: Path, hidden_BTD: Tensor, *, room: int) -> None:
        """Keep hidden states, and evict others until all of them fit in `room` bytes."""
        if hidden_BTD.nbytes > room or (batch, path) in self._kept:
            return
        self._kept[batch, path] = hidden_BTD
        self._bytes += hidden_BTD.nbytes
        while self._bytes > room:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.nbytes

    @property
    def nbytes(self) -> int:
        """How many bytes are kept."""
        return self._bytes

    def clear(self) -> None:
        """Forget all hidden states."""
        self._kept.clear()
        self._bytes = 0


class PreparedBatch:
    """One batch: its recording, and the hidden states kept of it."""

    def __init__(self, model: BlockModel, batch: Batch, prefix_cache: PrefixCache) -> None:
        self.batch = batch
        self._model = model
        # The prefix cache has this batch: without a circle both are freed as soon as the prefix cache is let go of.
        self._prefix_cache_ref = weakref.ref(prefix_cache)
        self.recording = _record(model, batch.rows)
        self._prompt_recording: Recording | None = None
        self._dense_ND: Tensor | None = None
        self._dense_path: Path = tuple(Place(block, ((block, None),), ((block, None),)) for block in range(model.block_count))
        self._dense: dict[int, Tensor] = {0: self.recording.hidden_BTD}
        self._logprobs: dict[int, Tensor | None] = {}

    @cached_property
    def _stride(self) -> int:
        """At every how many blocks the dense model's hidden states are kept; 0 for nowhere.

        Granted to a batch when it is first run, since a batch that never is would keep others from it.
        """
        granted = self._prefix_cache.grant(self.recording.hidden_BTD.nbytes, self._model.block_count)
        return math.ceil(self._model.block_count / granted) if granted else 0

    @property
    def _prefix_cache(self) -> PrefixCache:
        prefix_cache = self._prefix_cache_ref()
        assert prefix_cache is not None, "a batch is used no longer than the prefix cache that prepared it"
        return prefix_cache

    @property
    def prompt_recording(self) -> Recording:
        """The recording of the tokens that prefill reads, made on first use."""
        if self._prompt_recording is None:
            assert self.batch.prompts is not None
            self._prompt_recording = _record(self._model, self.batch.prompts.rows)
        return self._prompt_recording

    @property
    def dense_hidden(self) -> Tensor:
        """The dense model's hidden states `[N, D]` behind the last block where logits count, made on first use and kept."""
        return result_of(self.dense_hidden_pass())

    def dense_hidden_pass(self) -> Pass[Tensor]:
        """Return the pass that makes `dense_hidden`."""
        if self._dense_ND is None and self._prefix_cache.of_dense is not self._prefix_cache:
            of_dense = self._prefix_cache.of_dense
            self._dense_ND = yield from PreparedBatch(of_dense.model, self.batch, of_dense).dense_hidden_pass()
        elif self._dense_ND is None:
            hidden_BTD = yield from self.dense_pass(self._model.block_count)
            self._dense_ND = hidden_BTD[self.batch.at_row, self.batch.at_column]
        return self._dense_ND

    def dense_logprobs(self, start: int, stop: int) -> Tensor:
        """Return the dense model's log-probabilities `[n, V]` at some of the positions where logits count; they must not change.

        Asked for again they are kept, if the budget has room: to make them is as much work as to make a plan's.
        """
        kept = self._logprobs.get(start)
        if kept is None:
            kept = logprobs(self._prefix_cache.of_dense.model, self.dense_hidden[start:stop])
            again = start in self._logprobs
            self._logprobs[start] = kept if again and self._prefix_cache.grant_logprobs(kept.nbytes) else None
        return kept

    @property
    def logprob_bytes(self) -> int:
        """How many bytes the dense model's log-probabilities take, where they were asked for."""
        return len(self.batch.at_row) * self._model.config.vocab_size * 4 if self._logprobs else 0

    def dense_pass(self, depth: int) -> Pass[Tensor]:
        """Return the pass that makes the dense model's hidden states `[B, T, D]` in front of a block."""
        first, hidden_BTD = self.nearest(self._dense_path[:depth])
        for index in range(first, depth):
            self.keep(self._dense_path[:index], hidden_BTD)
            yield index
            hidden_BTD = self._model.run(index, hidden_BTD, self.recording.calls)
        return hidden_BTD

    def nearest(self, path: Path) -> tuple[int, Tensor]:
        """Return how many positions of a path need not be run, and the hidden states behind them."""
        dense = self._dense_places(path)
        for places in range(len(path), dense, -1):
            found = self._prefix_cache.of_plans.find(id(self), path[:places])
            if found is not None:
                return places, found
        index = max(kept for kept in self._dense if kept <= dense)
        return index, self._dense[index]

    def keep(self, path: Path, hidden_BTD: Tensor) -> None:
        """Keep the hidden states behind a path, if they fit in the budget."""
        stride = self._stride  # before what is left is asked for
        if self._dense_places(path) < len(path):
            self._prefix_cache.of_plans.keep(id(self), path, hidden_BTD, room=self._prefix_cache.room_for_plans)
        elif stride and len(path) % stride == 0:
            self._dense.setdefault(len(path), hidden_BTD)

    def _dense_places(self, path: Path) -> int:
        """Return how many positions at the beginning of a path are the dense model's."""
        pairs = zip(path, self._dense_path, strict=False)
        return next((number for number, (place, dense) in enumerate(pairs) if place != dense), len(path))


def _record(model: BlockModel, rows: Rows) -> Recording:
    return model.record(rows.ids_BT, rows.mask_BTT, rows.positions_BT)
