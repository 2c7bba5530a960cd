"""What a scorer may look at: the calibration tokens, the dense model's hidden states over them, and gradients on request.

Shape suffixes: L block outputs, B batch, T token, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.passes import Pass, result_of, results_of


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of one batch, padded on the right; `is_token_BT` is False on padding.

    `lengths` are the tokens of each row, which are known without waiting for an accelerator, and `rows` the numbers of the
    sequences.
    """

    ids_BT: Tensor
    is_token_BT: Tensor
    lengths: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    @cached_property
    def places(self) -> Tensor:
        """The places of the real tokens, counted through all rows, on the host."""
        width = self.ids_BT.shape[1]
        return torch.cat([torch.arange(row * width, row * width + length) for row, length in enumerate(self.lengths)])


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states of one batch: `hidden[i]` is the input of block i, `hidden[L]` the output of the last block.

    All are taken at the blocks, before any final norm. `is_token_BT` is False on padding.
    """

    hidden: tuple[Tensor, ...]
    is_token_BT: Tensor


Look = Callable[[TokenBatch, int, int, Tensor, Tensor], None]
"""What is called with hidden states in front of some neighbouring blocks and behind them; see `ScoreContext.look`."""


class ScoreContext:
    """The dense model and the token sequences that block scores are taken over.

    Only one batch of hidden states is in memory at a time, unless the weights stay on the disk. Once all batches have been looked
    at, `norms` has the mean length of the states in front of each block and behind the last one (L + 1 numbers), over all real
    tokens.

    With `gradients`, which a scorer requests by `needs_gradients`, the context is entered (`with context:`) while the scorer
    works: parameters then take gradients, and `loss` gives what to differentiate. When it is left, the gradients are gone and
    the parameters are as they were.
    """

    def __init__(
        self,
        model: BlockModel,
        sequences: Sequence[Sequence[int]],
        *,
        batch_tokens: int | None = None,
        gradients: bool = False,
    ) -> None:
        self.model = model
        self.block_count = model.block_count
        self._sequences = [tuple(sequence) for sequence in sequences]
        self._batch_tokens = batch_tokens or model.fitting_batch
        self._gradients = gradients
        self._frozen: list[tuple[nn.Parameter, bool]] | None = None
        self.norms: tuple[float, ...] = ()

    def __enter__(self) -> Self:
        if self._gradients:
            self._frozen = [(parameter, parameter.requires_grad) for parameter in self.model.model.parameters()]
            for parameter, _ in self._frozen:
                parameter.requires_grad_(parameter.is_floating_point())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for parameter, before in self._frozen or []:
            parameter.requires_grad_(before)
            parameter.grad = None
        self._frozen = None

    def token_batches(self) -> Iterator[TokenBatch]:
        """Yield the token ids of all sequences, batch by batch, sorted by length and padded on the right."""
        for rows in self._groups():
            group = [self._sequences[row] for row in rows]
            width = len(group[-1])
            ids_BT = torch.tensor([[*s, *[0] * (width - len(s))] for s in group], device=self.model.device)
            is_token_BT = torch.tensor([[t < len(s) for t in range(width)] for s in group], device=self.model.device)
            yield TokenBatch(ids_BT, is_token_BT, tuple(map(len, group)), rows)

    def loss(self, batch: TokenBatch) -> Tensor:
        """Return a batch's share of the mean cross entropy of the next token (nats) over all sequences, to differentiate.

        The sum over all batches is the mean, and gradients that add up over batches are those of the mean, whatever the
        batches are. Raises `PdtrimError` outside of a context that was entered with `gradients`, and where no sequence has
        two tokens.
        """
        if self._frozen is None:
            raise PdtrimError("there are no gradients here: a scorer that takes them says needs_gradients = True")
        count = sum(len(sequence) - 1 for sequence in self._sequences if sequence)
        if not count:
            raise PdtrimError("there are no sequences of two tokens or more to take a loss on: give longer samples")
        is_next_BT = batch.is_token_BT[:, 1:]
        with torch.enable_grad():
            # Attention is causal: padding on the right changes nothing in front of it.
            logits_BTV = self.model.model(input_ids=batch.ids_BT, use_cache=False).logits[:, :-1].float()
            next_BT = batch.ids_BT[:, 1:]
            total: Tensor = nn.functional.cross_entropy(logits_BTV[is_next_BT], next_BT[is_next_BT], reduction="sum")
            return total / count

    def batches(self) -> Iterator[HiddenStates]:
        """Yield the hidden states of all sequences, batch by batch, sorted by length and padded on the right.

        They take part in no gradient, and between two of them the thread is in the mode that it was in. Where weights stay on the
        disk they are read once for each batch: `look` reads them once.
        """
        norms = _Norms(self)
        for batch in self.token_batches():
            hidden: dict[int, Tensor] = {}
            with self._mode():
                result_of(self._pass(batch, norms, hidden.__setitem__))
            yield HiddenStates(tuple(hidden.values()), batch.is_token_BT)
        norms.found()

    def look(self, function: Look, lengths: Sequence[int]) -> None:
        """Call a function with the hidden states in front of and behind each `length` neighbouring blocks, for each batch.

        It is given the batch, the first of the blocks, their number, and the two hidden states `[B, T, D]`. Of all that it is
        called for, the calls for the same blocks come in the order of the batches.
        """
        norms, most = _Norms(self), max(lengths)

        def looking(batch: TokenBatch) -> Pass[None]:
            latest: dict[int, Tensor] = {}

            def look(depth: int, states_BTD: Tensor) -> None:
                latest[depth] = states_BTD
                for length in lengths:
                    if depth >= length:
                        function(batch, depth - length, length, latest[depth - length], states_BTD)
                latest.pop(depth - most, None)

            return self._pass(batch, norms, look)

        with self._mode():
            for _ in results_of(map(looking, self.token_batches()), together=self.model.streams):
                pass
        norms.found()

    def _pass(self, batch: TokenBatch, norms: _Norms, look: Callable[[int, Tensor], None]) -> Pass[None]:
        """Return the pass of a batch through all blocks; `look` is given the states in front of each, and the last ones."""
        # Whoever compares two of them need not know where the model's blocks are.
        recording, at_N = self.model.record(batch.ids_BT), batch.places
        hidden_BTD = recording.hidden_BTD
        for depth in range(self.block_count + 1):
            if depth:
                yield depth - 1
                hidden_BTD = self.model.run(depth - 1, hidden_BTD, recording.calls)
            states_BTD = hidden_BTD.to(self.model.device)
            norms.add(depth, states_BTD, at_N)
            look(depth, states_BTD)

    def _mode(self) -> AbstractContextManager[Any]:
        # What inference mode makes can take no part in a gradient ever after, so a scorer that wants some gets other tensors.
        return torch.no_grad() if self._gradients else torch.inference_mode()

    def _groups(self) -> Iterator[tuple[int, ...]]:
        group: list[int] = []
        for row in sorted(range(len(self._sequences)), key=lambda row: (len(self._sequences[row]), self._sequences[row])):
            if group and (len(group) + 1) * len(self._sequences[row]) > self._batch_tokens:
                yield tuple(group)
                group = []
            group.append(row)
        if group:
            yield tuple(group)

    def mean_over_tokens(self, similarity: Callable[[Tensor, Tensor], Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean of a similarity across each block (L numbers) and across each two neighbours (L - 1).

        Every real token counts the same, whatever its batch; padding does not count. `similarity` takes two
        `[batch, token, hidden]` in float32 and returns `[batch, token]`; NaN or infinite where it is undefined raises
        nothing here, the scores' own check names it.
        """
        one, two = self._means(similarity, (1, 2))
        return one, two

    def mean_over_windows(self, similarity: Callable[[Tensor, Tensor], Tensor], length: int) -> tuple[float, ...]:
        """Return the mean of a similarity across each `length` neighbouring blocks, by the first of them (L + 1 - length).

        `similarity` and the mean are as in `mean_over_tokens`.
        """
        (windows,) = self._means(similarity, (length,))
        return windows

    def _means(self, similarity: Callable[[Tensor, Tensor], Tensor], lengths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Return for each length the mean similarity across so many blocks, by the first of them; one pass for all."""
        counts = {length: max(0, self.block_count + 1 - length) for length in lengths}
        found = {length: torch.zeros(count, dtype=torch.float64, device=self.model.device) for length, count in counts.items()}

        def add(batch: TokenBatch, first: int, length: int, before_BTD: Tensor, after_BTD: Tensor) -> None:
            alike_BT = similarity(before_BTD.float(), after_BTD.float())
            found[length][first] += alike_BT.flatten()[batch.places].double().sum()

        self.look(add, lengths)
        tokens = sum(map(len, self._sequences))
        return tuple(tuple((sums / tokens).tolist()) for sums in found.values())


class _Norms:
    """The mean length of hidden states at each depth, over all real tokens of the batches that went through."""

    def __init__(self, context: ScoreContext) -> None:
        self._context = context
        self._lengths = torch.zeros(context.block_count + 1, dtype=torch.float64, device=context.model.device)
        self._tokens = 0

    def add(self, depth: int, states_BTD: Tensor, at_N: Tensor) -> None:
        """Add a batch at a depth."""
        self._tokens += len(at_N) if depth == 0 else 0
        with torch.no_grad():
            self._lengths[depth] += states_BTD.float().norm(dim=-1).flatten()[at_N].double().sum()

    def found(self) -> None:
        """Tell the context what was found."""
        if self._tokens:
            self._context.norms = tuple((self._lengths / self._tokens).tolist())
