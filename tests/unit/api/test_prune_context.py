"""What a pruner is given: windows of its tokens, hidden states, and what it may ask the run for."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core.api import Drop, Merge, PdtrimError, PruneContext, Removal
from pdtrim_core.testing import prune_context, tiny_llama

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdtrim_core.api import BlockModel

SEQUENCES = [Random(number).choices(range(256), k=length) for number, length in enumerate((5, 9, 1, 14, 9))]


def context_of(model: BlockModel, sequences: Sequence[Sequence[int]] = SEQUENCES, **options: Any) -> PruneContext:
    return prune_context(model, sequences, blocks=2, parameters=1000, **options)


def by_hand() -> PruneContext:
    return PruneContext(tiny_llama(), SEQUENCES, blocks=2, parameters=1000, rng=Random(0))


def test_windows_are_cut_from_the_joined_sequences_and_the_rest_is_left_out() -> None:
    context = context_of(tiny_llama(), [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]])
    assert context.windows(5) == [(1, 2, 3, 4, 5), (6, 7, 8, 9, 10)]
    assert context.windows(5, 1) == [(1, 2, 3, 4, 5)]
    assert context.windows(11, 7) == [(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]


def test_a_window_that_is_not_filled_once_is_refused() -> None:
    with pytest.raises(PdtrimError) as error:
        context_of(tiny_llama(), [[1, 2, 3], [4]]).windows(5)
    assert str(error.value) == (
        "the calibration items have 4 tokens together, too few for a window of 5: ask for shorter windows or for more samples"
    )


def test_the_states_are_those_of_all_sequences() -> None:
    states = context_of(tiny_llama(), batch_tokens=10).states
    assert sum(int(batch.is_token_BT.sum()) for batch in states.batches()) == sum(map(len, SEQUENCES))


def test_losses_and_merges_are_what_the_run_gives() -> None:
    block = tiny_llama().blocks[3]
    asked: list[object] = []

    def losses(sequences: Sequence[Sequence[int]]) -> Any:
        asked.append(sequences)
        return lambda removal: float(len(removal))

    context = context_of(tiny_llama(), losses=losses, train=lambda merge: (Merge(merge.keep, merge.drop, "frozen"), block))
    assert context.loss_of(SEQUENCES[:2])(Removal([Drop(1), Drop(4)])) == 2.0
    assert asked == [SEQUENCES[:2]]
    assert context.trained(Merge(1, 2)) == (Merge(1, 2, "frozen"), block)


def test_without_training_the_block_that_it_would_start_from_stands_for_a_merge() -> None:
    context = by_hand()
    merge, module = context.trained(Merge(keep=3, drop=2))
    assert merge == Merge(keep=3, drop=2)
    assert module is context.model.blocks[3]


def test_a_context_that_measures_no_losses_says_how_to_get_one_that_does() -> None:
    with pytest.raises(PdtrimError) as error:
        by_hand().loss_of(SEQUENCES)
    assert str(error.value) == (
        "this context measures no losses: make it with pdtrim_core.testing.prune_context, or give it losses"
    )


def test_a_context_made_for_tests_measures_losses() -> None:
    loss = context_of(tiny_llama()).loss_of(SEQUENCES)
    assert loss(Removal([Drop(0)])) != loss(Removal([Drop(1)]))
