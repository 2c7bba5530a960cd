"""What a scorer may look at: the dense model's hidden states over the calibration tokens, streamed.

Shape suffixes: L block outputs, B batch, T token, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdtrim_core.model.block_model import BlockModel


@dataclass(frozen=True)
class HiddenStates:
    """The stream of one batch: `hidden[i]` is the input of block i, `hidden[L]` the output of the last block.

    All are taken at the blocks, before any final norm. `is_token_BT` is False on padding.
    """

    hidden: tuple[Tensor, ...]
    is_token_BT: Tensor


class ScoreContext:
    """The dense model and the token sequences that block scores are taken over.

    Only one batch of hidden states is in memory at a time. Once all batches have been looked at, `norms` has the mean length
    of the states in front of each block and behind the last one (L + 1 numbers), over all real tokens.
    """

    def __init__(self, model: BlockModel, sequences: Sequence[Sequence[int]], *, batch_tokens: int | None = None) -> None:
        self.model = model
        self.block_count = model.block_count
        self._sequences = [tuple(sequence) for sequence in sequences]
        self._batch_tokens = batch_tokens or model.fitting_batch
        self.norms: tuple[float, ...] = ()

    def batches(self) -> Iterator[HiddenStates]:
        """Yield the hidden states of all sequences, batch by batch, sorted by length and padded on the right."""
        lengths, tokens = torch.zeros(self.block_count + 1, dtype=torch.float64), 0
        for group in self._groups():
            width = len(group[-1])
            ids_BT = torch.tensor([[*s, *[0] * (width - len(s))] for s in group], device=self.model.device)
            is_token_BT = torch.tensor([[t < len(s) for t in range(width)] for s in group], device=self.model.device)
            with torch.inference_mode():
                recording = self.model.record(ids_BT)
                hidden = [recording.hidden_BTD]
                for index in range(self.block_count):
                    hidden.append(self.model.run(index, hidden[-1], recording.calls))
                lengths += torch.stack([_total_length(states_BTD, is_token_BT) for states_BTD in hidden]).cpu()
                tokens += int(is_token_BT.sum())
                yield HiddenStates(tuple(hidden), is_token_BT)
        if tokens:
            self.norms = tuple((lengths / tokens).tolist())

    def _groups(self) -> Iterator[list[tuple[int, ...]]]:
        group: list[tuple[int, ...]] = []
        for sequence in sorted(self._sequences, key=lambda s: (len(s), s)):
            if group and (len(group) + 1) * len(sequence) > self._batch_tokens:
                yield group
                group = []
            group.append(sequence)
        if group:
            yield group

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
        found = [torch.zeros(max(0, self.block_count + 1 - length), dtype=torch.float64) for length in lengths]
        tokens = 0
        for batch in self.batches():
            states = [hidden.float() for hidden in batch.hidden]
            tokens += int(batch.is_token_BT.sum())
            for length, sums in zip(lengths, found, strict=True):
                for index in range(len(sums)):
                    alike_BT = similarity(states[index], states[index + length])
                    sums[index] += alike_BT[batch.is_token_BT].double().sum().item()
        return tuple(tuple((sums / tokens).tolist()) for sums in found)


def _total_length(states_BTD: Tensor, is_token_BT: Tensor) -> Tensor:
    """Return the sum of the Euclidean norms of all real tokens' states, in float64."""
    lengths_BT: Tensor = states_BTD.float().norm(dim=-1)
    return lengths_BT[is_token_BT].double().sum()
