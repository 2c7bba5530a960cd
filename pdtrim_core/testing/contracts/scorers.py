"""What every scorer must hold to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from pdtrim_core.api.plan_kinds import Scorer
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.data.scores import Scores
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.testing.contracts.shared import (
    SILENT,
    TOLERANCE,
    check_component,
    contract,
    no_global_randomness,
    rng_of,
)
from pdtrim_core.testing.contracts.untouched import left_as_it_was
from pdtrim_core.testing.models import tiny_llama


@contract
class ScorerContract:
    """What every scorer must hold to."""

    component: ClassVar[type[Scorer]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Scorer, self.options)

    def test_it_gives_one_finite_score_a_block_and_a_pair_or_no_pairs(self) -> None:
        """The core refuses other results, naming the scorer."""
        scores = self._score(tiny_llama(), _sequences(5, 9, 12))
        assert isinstance(scores, Scores)
        assert scores.problems(tiny_llama().block_count) == []

    def test_a_silent_block_is_ranked_first(self) -> None:
        """A block that hands on its input unchanged is the safest one to remove."""
        scores = self._score(tiny_llama(silent={SILENT}), _sequences(5, 9, 12))
        assert scores.ranking()[0] == SILENT

    def test_the_same_model_and_tokens_give_the_same_scores(self) -> None:
        """No randomness, no memory of an earlier call."""
        with no_global_randomness():
            first = self._score(tiny_llama(), _sequences(5, 9, 12))
            again = self._score(tiny_llama(), _sequences(5, 9, 12))
        assert first == again

    def test_the_batch_size_does_not_matter(self) -> None:
        """Five sequences of eight tokens, once in batches of two, two and one, once in one batch."""
        sequences = _sequences(8, 8, 8, 8, 8)
        self._same(*(self._score(tiny_llama(), sequences, batch_tokens=tokens) for tokens in (16, 1000)))

    def test_padding_does_not_matter(self) -> None:
        """Sequences of unlike lengths, once each on its own, once padded to the longest."""
        sequences = _sequences(3, 5, 21)
        self._same(*(self._score(tiny_llama(), sequences, batch_tokens=tokens) for tokens in (1, 1000)))

    def test_the_model_is_left_as_it_was(self) -> None:
        """See `left_as_it_was`: weights, gradients, hooks, modes, attributes and settings."""
        model = tiny_llama()
        with left_as_it_was(model):
            self._score(model, _sequences(5, 9, 12))

    def _score(self, model: BlockModel, sequences: Sequence[Sequence[int]], batch_tokens: int = 512) -> Scores:
        scorer = self.component(**self.options)
        with ScoreContext(model, sequences, batch_tokens=batch_tokens, gradients=scorer.needs_gradients) as context:
            return scorer.score(context)

    def _same(self, one: Scores, other: Scores) -> None:
        size = max(1.0, *map(abs, one.block))
        assert one.block == pytest.approx(other.block, abs=TOLERANCE * size)
        assert one.pair == pytest.approx(other.pair, abs=TOLERANCE * size)


def _sequences(*lengths: int) -> list[list[int]]:
    rng = rng_of(0)
    return [[rng.randrange(256) for _ in range(length)] for length in lengths]
