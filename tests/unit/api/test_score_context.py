"""Block scores: hidden states taken at the blocks, every real token the same weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn.functional import cosine_similarity

from pdtrim_core.api import Scorer, Scores
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.search.space import two_sets
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from tests.reference import reference, reference_texts

if TYPE_CHECKING:
    from pdtrim_core import PluginHost
    from pdtrim_core.api import BlockModel

pytestmark = pytest.mark.numeric

SEQUENCES = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14, 15]]


def cosine(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return cosine_similarity(before, after, dim=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_are_those_that_hooks_see_at_the_blocks(family: str) -> None:
    model = tiny_model(family)
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda m, args, kwargs: seen.append(args[0]), with_kwargs=True) for block in model.blocks
    ]
    with torch.inference_mode():
        model.model(torch.tensor([SEQUENCES[1]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    (batch,) = ScoreContext(model, SEQUENCES[1:2]).batches()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch.hidden, seen, strict=False))
    assert len(batch.hidden) == len(seen) + 1


def test_the_last_stream_is_taken_before_the_final_norm() -> None:
    model = tiny_llama()
    (batch,) = ScoreContext(model, SEQUENCES[1:2]).batches()
    with torch.inference_mode():
        normed = model.model.model(torch.tensor([SEQUENCES[1]])).last_hidden_state
        assert not torch.allclose(batch.hidden[-1], normed)
        assert torch.allclose(model.model.model.norm(batch.hidden[-1]), normed)


@pytest.mark.parametrize("batch_tokens", [1, 8, 16, 512])
def test_means_do_not_depend_on_the_batch_nor_on_padding(batch_tokens: int) -> None:
    model = tiny_llama()
    alone = [ScoreContext(model, [s]).mean_over_tokens(cosine)[0] for s in SEQUENCES]
    weights = [len(s) for s in SEQUENCES]
    expected = [sum(w * means[i] for w, means in zip(weights, alone, strict=True)) / sum(weights) for i in range(6)]
    one, two = ScoreContext(model, SEQUENCES, batch_tokens=batch_tokens).mean_over_tokens(cosine)
    assert one == pytest.approx(expected, abs=1e-5)
    assert (len(one), len(two)) == (6, 5)


@pytest.mark.parametrize("batch_tokens", [4, 512])
def test_windows_are_compared_from_end_to_end(batch_tokens: int) -> None:
    model = tiny_llama()
    context = ScoreContext(model, SEQUENCES, batch_tokens=batch_tokens)
    alone = [batch.hidden for sequence in SEQUENCES for batch in ScoreContext(model, [sequence]).batches()]
    for length in (1, 4, 6):
        expected = [
            float(torch.cat([cosine(hidden[i], hidden[i + length])[0] for hidden in alone]).mean()) for i in range(7 - length)
        ]
        assert context.mean_over_windows(cosine, length) == pytest.approx(expected, abs=1e-5)
    assert (context.mean_over_windows(cosine, 1), context.mean_over_windows(cosine, 2)) == context.mean_over_tokens(cosine)
    assert context.mean_over_windows(cosine, 7) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_normed_stream_is_what_the_head_is_given(family: str) -> None:
    model = tiny_model(family)
    (batch,) = ScoreContext(model, SEQUENCES[1:2]).batches()
    given: list[torch.Tensor] = []
    hook = model.model.get_output_embeddings().register_forward_pre_hook(lambda module, args: given.append(args[0][0]))
    with torch.inference_mode():
        model.model(torch.tensor([SEQUENCES[1]]), use_cache=False)
        hook.remove()
        torch.testing.assert_close(model.normed(batch.hidden[-1][0]), given[0])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_means_do_not_depend_on_the_attention_backend(backend: str) -> None:
    usual = ScoreContext(tiny_llama(), SEQUENCES).mean_over_tokens(cosine)[0]
    other = ScoreContext(tiny_llama(attn_implementation=backend), SEQUENCES).mean_over_tokens(cosine)[0]
    assert other == pytest.approx(usual, abs=1e-4)


@pytest.fixture(scope="module")
def context(smollm: BlockModel) -> ScoreContext:
    return ScoreContext(smollm, reference_texts(smollm.tokenizer))


def scores_of(name: str, host: PluginHost, context: ScoreContext) -> Scores:
    scorer = host.find("scorer", name).component.model_validate({})
    assert isinstance(scorer, Scorer)
    return scorer.score(context)


@pytest.mark.model
def test_cosine_scores_of_the_real_model_are_the_reference(host: PluginHost, context: ScoreContext) -> None:
    scores, expected = scores_of("cosine", host, context), reference("pdtrim")
    assert scores.block == pytest.approx(expected["r"], abs=1e-4)
    assert scores.pair == pytest.approx(expected["d_pair"], abs=1e-4)


@pytest.mark.model
def test_dot_and_euclidean_scores_of_the_real_model_are_the_reference(host: PluginHost, context: ScoreContext) -> None:
    variants = reference("similarity")
    dot, euclidean = (scores_of(name, host, context).block for name in ("dot", "euclidean"))
    # These are sums over a hidden size of 576 with norms up to 23,000, hence relative.
    assert dot == pytest.approx([-value for value in variants["neg_dot"]["scores"]], rel=1e-4, abs=1e-2)
    assert euclidean == pytest.approx([-value for value in variants["euclidean"]["scores"]], rel=1e-4)


@pytest.mark.model
def test_block_influence_is_what_the_authors_code_gave(host: PluginHost, context: ScoreContext) -> None:
    run = reference("shortgpt")["one_by_one"]
    scores = scores_of("cosine", host, context)
    tokens = sum(len(sequence) for sequence in context._sequences)
    # The last block is compared with the normed state there, which is another definition.
    ours, theirs = [1 - r for r in scores.block[:-1]], [sums / tokens for sums in run["importances"][:-1]]
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert scores.ranking()[:5] == run["order_asc"][:5] == run["removed"]


@pytest.mark.model
def test_the_two_sets_and_the_first_removal_of_the_real_model_are_the_reference(host: PluginHost, context: ScoreContext) -> None:
    scores = scores_of("cosine", host, context)
    for case in reference("pdtrim")["sets"]:
        sets = two_sets(scores, case["k"], case["d_T"])
        assert list(sets.initial) == case["P_initial"]
        assert [list(pair.blocks) for pair in sets.pairs] == case["D"]
        assert len(sets.drops) == case["P_final_size"]
        first = [tuple(b) if isinstance(b, list) else (b,) for b in case["B_initial"]]
        assert sorted(e.blocks for e in sets.first_removal(case["k"])) == sorted(first)


@pytest.mark.parametrize("batch_tokens", [1, 8, 512])
def test_norms_are_the_mean_lengths_of_all_real_tokens_states(batch_tokens: int) -> None:
    model = tiny_llama()
    lengths = torch.zeros(7, dtype=torch.float64)
    for sequence in SEQUENCES:
        (batch,) = ScoreContext(model, [sequence]).batches()
        lengths += torch.stack([states[0].norm(dim=-1).double().sum() for states in batch.hidden])
    context = ScoreContext(model, SEQUENCES, batch_tokens=batch_tokens)
    assert context.norms == ()
    context.mean_over_tokens(cosine)
    expected = lengths / sum(map(len, SEQUENCES))
    # Sums in float32 over another padding: a few units in the last place.
    assert context.norms == pytest.approx(expected.tolist(), rel=1e-5)


def test_norms_behind_each_block_are_the_scores_of_the_scorer_norm(host: PluginHost) -> None:
    scorer = host.find("scorer", "norm").component()
    assert isinstance(scorer, Scorer)
    context = ScoreContext(tiny_llama(), SEQUENCES)
    assert context.norms[1:] == ()
    assert scorer.score(context).block == pytest.approx(context.norms[1:], rel=1e-6)


def test_norms_are_not_known_before_all_batches_were_seen() -> None:
    context = ScoreContext(tiny_llama(), SEQUENCES, batch_tokens=1)
    next(context.batches())
    assert context.norms == ()


def test_a_look_is_given_the_states_on_both_sides_of_neighbouring_blocks() -> None:
    model = tiny_llama()
    context = ScoreContext(model, SEQUENCES, batch_tokens=8)
    batches = list(context.batches())
    norms, seen = context.norms, []
    context.look(lambda batch, first, length, before, after: seen.append((batch.lengths, first, length, before, after)), (1, 3))
    assert context.norms == norms
    expected = [
        (batch, first, length)
        for batch in batches
        for first in range(model.block_count)
        for length in (1, 3)
        if first + length <= model.block_count
    ]
    assert len(seen) == len(expected)
    for lengths, first, length, before, after in seen:
        (batch,) = [one for one in batches if tuple(one.is_token_BT.sum(dim=1).tolist()) == lengths]
        assert torch.equal(before, batch.hidden[first])
        assert torch.equal(after, batch.hidden[first + length])
