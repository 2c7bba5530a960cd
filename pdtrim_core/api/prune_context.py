"""What a pruner is given: the dense model, tokens, a budget, and what the run measures and trains for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from torch import nn

from pdtrim_core.api.prune_facts import PruneFacts
from pdtrim_core.api.routed_tokens import RoutedTokens, look_at_routers
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Merge, Removal

LossOf = Callable[[Sequence[Sequence[int]]], Callable[[Removal], float]]
"""Gives, for token sequences, the function that measures the loss of a removal on them."""
Train = Callable[[Merge], tuple[Merge, nn.Module]]
"""Gives a merge as the recipe's distiller makes it, and the block that it trained for it."""
Write = Callable[[int], Iterable[Sequence[int]]]
"""Gives so many texts that the dense model writes, as tokens."""


def _say_nothing(text: str) -> None:
    del text


def _note_nothing(share: float) -> None:
    del share


@dataclass(frozen=True)
class PruneContext:
    """The dense model, tokens, and the budget of a pruner; every pruner gets the same.

    `sequences` are the tokens of the calibration items, each prompt with its right continuation. `blocks` is how many blocks
    are to go, or `parameters` how many weights, whichever a method counts in: both are the same budget. All randomness comes
    from `rng`. `batch_tokens` is how many tokens a batch has, None what suits the device. `note` says something to the user.
    `reached` takes the share of the pruner's own work that is done, 0 to 1, so that people see how long it will take; losses,
    training and texts tell that by themselves.
    `decode_from` has for each sequence the first token that decode runs, which is the last one of its prompt where decode makes
    the first token; empty where that is not known, and all tokens count as decode's.

    A run sets `losses`, `train`, `write` and `answer`, which `loss_of`, `trained`, `written_texts` and `answered_prompts` call. A
    context that is made by hand may leave them out: `pdtrim_core.testing.prune_context` makes one that measures losses and
    writes texts.
    """

    model: BlockModel
    sequences: Sequence[Sequence[int]]
    blocks: int
    parameters: int
    rng: Random
    batch_tokens: int | None = None
    note: Callable[[str], None] = _say_nothing
    losses: LossOf | None = None
    train: Train | None = None
    write: Write | None = None
    answer: Write | None = None
    decode_from: Sequence[int] = ()
    reached: Callable[[float], None] = _note_nothing

    @property
    def facts(self) -> PruneFacts:
        """What is known of this without the weights, for `Pruner.check`."""
        model = self.model
        return PruneFacts(model.name, model.config.model_type, model.sizes, self.blocks, self.parameters)

    @property
    def states(self) -> ScoreContext:
        """The dense model's hidden states over the sequences."""
        return ScoreContext(self.model, self.sequences, batch_tokens=self.batch_tokens)

    def look_at_routers(self, function: Callable[[RoutedTokens], None]) -> None:
        """Call a function with what the router of each block chose in the dense model, for the tokens that decode runs.

        These are the tokens of each sequence from `decode_from` on, but for the last, which decode never reads. Calls for one
        block come in the order of the batches. Raises `PdtrimError` where decode runs no token of any sequence.
        """
        starts = self.decode_from or [0] * len(self.sequences)
        runs = [range(start, len(sequence) - 1) for start, sequence in zip(starts, self.sequences, strict=True)]
        if not any(runs):
            raise PdtrimError(
                "decode runs no token of the calibration items, so that no router can be seen: take items with longer answers, "
                'or evaluation.first_token = "decode", whose decode runs the last token of a prompt, too'
            )
        look_at_routers(self.states, runs, function)

    def windows(self, length: int, count: int | None = None) -> list[tuple[int, ...]]:
        """Return the sequences joined and cut into windows of one length, `count` of them at most; the rest is left out.

        Raises `PdtrimError` where the sequences do not fill one window.
        """
        tokens = [token for sequence in self.sequences for token in sequence]
        starts = range(0, len(tokens) - length + 1, length)
        if not starts:
            raise PdtrimError(
                f"the calibration items have {len(tokens)} tokens together, too few for a window of {length}: ask for shorter "
                "windows or for more samples"
            )
        return [tuple(tokens[start : start + length]) for start in starts][:count]

    def trained(self, merge: Merge) -> tuple[Merge, nn.Module]:
        """Return a merge as the recipe's distiller makes it, with its kind of K/V, and the block that it trained for it.

        A context without `train` trains nothing: the merged block is then the block that training would start from.
        """
        return (merge, self.model.blocks[merge.keep]) if self.train is None else self.train(merge)

    def written_texts(self, count: int) -> list[tuple[int, ...]]:
        """Return so many texts that the dense model wrote, as tokens, all of one length; none of them measures.

        They are those that recoveries learn from (see `recovery_data`), and are kept in the user's cache. Raises `PdtrimError`
        for a context without `write`, and where there is nothing that the model could go on from.
        """
        if self.write is None:
            raise PdtrimError("this context writes no texts: make it with pdtrim_core.testing.prune_context, or give it write")
        return [tuple(text) for text in islice(self.write(count), count)]

    def answered_prompts(self, count: int) -> list[tuple[int, ...]]:
        """Return so many prompts of the calibration's training part, or as many as there are, each with the dense model's answer.

        The answers are greedy, of `recovery_data.answer_tokens` tokens at most, and kept in the user's cache. None of these texts
        measures. A context without `answer` has none.
        """
        return [] if self.answer is None else [tuple(text) for text in islice(self.answer(count), count)]

    def loss_of(self, sequences: Sequence[Sequence[int]]) -> Callable[[Removal], float]:
        """Return the function that gives the loss of a removal from both stages: nats a token, behind the first of a sequence.

        Each measurement goes to the run's journal, under the part `losses` with a hash of these sequences, so that an
        interrupted run does not make it again. A removal may drop blocks and shrink them, but not merge: there are no
        replacement modules. Raises `PdtrimError` where no sequence has two tokens, for a context without `losses`, and, when
        measured, for a loss that is not finite.
        """
        if self.losses is None:
            raise PdtrimError(
                "this context measures no losses: make it with pdtrim_core.testing.prune_context, or give it losses"
            )
        return self.losses(sequences)
