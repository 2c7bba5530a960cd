"""The scorers' three similarities, and their means over tokens."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.api import BlockModel, ScoreContext, Scorer, SimilarityScorer
from pdtrim_core.testing import tiny_llama
from pdtrim_plugins.scorers import Cosine, Dot, Euclidean, Norm

pytestmark = pytest.mark.numeric

SEQUENCES = [[7, 3, 99], [250, 1, 1, 8, 40, 41, 42], [65, 66, 67, 68]]
TOLERANCE = 1e-5
"""Relative: float32 states, summed in another order."""


def test_the_cosine_looks_at_directions_only() -> None:
    before = torch.tensor([[[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]]])
    after = torch.tensor([[[6.0, 8.0], [4.0, -3.0], [-0.3, -0.4]]])
    assert Cosine().similarity(before, after).tolist() == [pytest.approx([1, 0, -1], abs=1e-6)]


def test_the_dot_product_grows_with_the_norms() -> None:
    before = torch.tensor([[[1.0, 2.0], [2.0, 4.0]]])
    after = torch.tensor([[[3.0, 4.0], [6.0, 8.0]]])
    assert Dot().similarity(before, after).tolist() == [[11.0, 44.0]]


def test_the_euclidean_similarity_is_minus_the_distance() -> None:
    before = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    after = torch.tensor([[[3.0, 4.0], [1.0, 1.0]]])
    assert Euclidean().similarity(before, after).tolist() == [[-5.0, 0.0]]


def test_the_norm_is_that_of_the_output_whatever_the_block_did() -> None:
    before = torch.tensor([[[0.0, 1.0], [3.0, 4.0]]])
    after = torch.tensor([[[3.0, 4.0], [3.0, 4.0]]])
    assert Norm().similarity(before, after).tolist() == [[5.0, 5.0]]


def test_only_cosines_have_a_scale_of_their_own() -> None:
    context = ScoreContext(tiny_llama(), SEQUENCES)
    assert [scorer.score(context).similarity for scorer in (Cosine(), Dot(), Euclidean(), Norm())] == [True, False, False, False]


@pytest.mark.parametrize("scorer", [Cosine(), Dot(), Euclidean(), Norm()])
def test_a_block_score_is_the_mean_over_all_tokens(scorer: SimilarityScorer) -> None:
    """Against a plain run of the model, a sequence at a time, with hooks on its blocks."""
    model = tiny_llama()
    streams = [_streams(model, sequence) for sequence in SEQUENCES]
    one = [_mean(scorer, streams, block, block + 1) for block in range(model.block_count)]
    two = [_mean(scorer, streams, block, block + 2) for block in range(model.block_count - 1)]
    scores = scorer.score(ScoreContext(model, SEQUENCES))
    assert scores.block == pytest.approx(one, rel=TOLERANCE)
    # Eq. 3: d_i = (mean similarity over both blocks + the larger of the two block scores) / 2
    assert scores.pair == pytest.approx([(d + max(one[i], one[i + 1])) / 2 for i, d in enumerate(two)], rel=TOLERANCE)


@pytest.mark.parametrize("scorer", [Cosine(), Euclidean()])
def test_the_scores_of_an_unchanged_stream_are_the_highest_there_are(scorer: Scorer) -> None:
    scores = scorer.score(ScoreContext(tiny_llama(silent={1, 4}), SEQUENCES))
    highest = 1.0 if scores.similarity else 0.0
    assert [scores.block[1], scores.block[4]] == pytest.approx([highest, highest], abs=1e-6)
    assert scores.ranking()[:2] in ([1, 4], [4, 1])


def _streams(model: BlockModel, sequence: list[int]) -> list[torch.Tensor]:
    """Return the input of block 0 and the output of each block, by transformers' own forward."""
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda module, args, output: outputs.append(_first(output))) for block in model.blocks]
    hooks.append(model.blocks[0].register_forward_pre_hook(lambda module, args: outputs.append(args[0])))
    try:
        with torch.inference_mode():
            model.model(input_ids=torch.tensor([sequence]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _mean(scorer: SimilarityScorer, streams: list[list[torch.Tensor]], before: int, after: int) -> float:
    similar = torch.cat([scorer.similarity(stream[before], stream[after])[0] for stream in streams])
    assert len(similar) == sum(map(len, SEQUENCES))
    return float(similar.double().mean())
