"""Block Influence and its variants, against the authors' figures and by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, PdtrimError, PruneContext, Removal
from pdtrim_core.testing import prune_context, tiny_llama, tiny_model
from pdtrim_plugins.pruners import ShortGpt
from pdtrim_plugins.pruners.shortgpt import _angle, _cosine
from tests.reference import reference, reference_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdtrim_core.api import BlockModel

pytestmark = pytest.mark.numeric

SEQUENCES = [[7, 3, 99, 4], [250, 1, 1, 8, 40, 41, 42], [65, 66, 67, 68, 69]]
CLOSE = 1e-5
"""Relative: float32 states, summed in another order."""


def context_of(
    model: BlockModel, sequences: Sequence[Sequence[int]] = SEQUENCES, *, blocks: int = 2, **options: Any
) -> PruneContext:
    parameters = blocks * model.sizes.blocks[0].parameters
    return prune_context(model, sequences, blocks=blocks, parameters=parameters, rng=Random(0), **options)


def hidden_states(model: BlockModel, sequence: Sequence[int]) -> list[torch.Tensor]:
    """Return what transformers calls the hidden states: `[token, hidden]` each, the last one behind the final norm."""
    with torch.inference_mode():
        states = model.model(torch.tensor([sequence]), output_hidden_states=True, use_cache=False).hidden_states
    return [state[0] for state in states]


def by_hand(model: BlockModel, average: str) -> list[float]:
    """Return the mean cosines of all blocks but the last one, from transformers' own hidden states."""
    alike = []
    for sequence in SEQUENCES:
        states = hidden_states(model, sequence)
        alike.append(torch.stack([torch.cosine_similarity(a, b, dim=-1) for a, b in pairwise(states[:-1])]))
    if average == "tokens":
        means = torch.cat(alike, dim=1).mean(dim=1)
    elif average == "sequences":
        means = torch.stack([of_one.mean(dim=1) for of_one in alike]).mean(dim=0)
    else:
        means = torch.stack([of_one[:, -1] for of_one in alike]).mean(dim=0)
    found: list[float] = means.tolist()
    return found


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
@pytest.mark.parametrize("average", ["tokens", "sequences", "last-token"])
def test_each_average_is_what_its_name_says(family: str, average: str) -> None:
    model = tiny_model(family)
    pruner = ShortGpt.model_validate({"average": average})
    scores = pruner.prune(context_of(model, batch_tokens=16)).block_scores
    assert scores[:-1] == pytest.approx(by_hand(model, average), rel=CLOSE, abs=CLOSE)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-neox"])
def test_the_output_of_the_last_block_is_taken_where_it_is_asked_for(family: str) -> None:
    model = tiny_model(family)
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if "norm" in name and "layers" not in name:
                weight.copy_(torch.linspace(-0.5, 1.5, len(weight)))
    before, behind = (
        ShortGpt.model_validate({"last_block": place}).prune(context_of(model, SEQUENCES[:1])).block_scores
        for place in ("before-norm", "behind-norm")
    )
    *_, last, normed = hidden_states(model, SEQUENCES[0])
    assert behind[-1] == pytest.approx(_cosine(last, normed).mean().item(), rel=CLOSE)
    assert behind[:-1] == before[:-1]
    assert abs(behind[-1] - before[-1]) > 0.01


def test_counted_padding_is_the_padding_that_transformers_makes() -> None:
    model = tiny_llama()
    width = max(map(len, SEQUENCES))
    ids = torch.tensor([[*s, *[model.tokenizer.eos_token_id] * (width - len(s))] for s in SEQUENCES])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in SEQUENCES])
    with torch.inference_mode():
        states = model.model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False).hidden_states
    expected = [_cosine(before, after).mean().item() for before, after in pairwise(states)]
    pruner = ShortGpt(padding="counted", last_block="behind-norm")
    assert pruner.prune(context_of(model)).block_scores == pytest.approx(expected, rel=CLOSE, abs=CLOSE)


def test_padding_counts_in_batches_of_eight_in_the_order_of_the_sequences() -> None:
    model = tiny_llama()
    long, short = [5] * 9, [6, 7]
    apart = [*[short] * 8, *[long] * 8]
    mixed = [short, long] * 8
    pruner = ShortGpt(padding="counted")
    scores = [pruner.prune(context_of(model, sequences)).block_scores for sequences in (apart, mixed)]
    assert scores[0] == pytest.approx(ShortGpt().prune(context_of(model, apart)).block_scores, rel=CLOSE, abs=CLOSE)
    assert scores[1] != pytest.approx(scores[0], rel=0.01)


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_a_run_is_the_one_whose_two_ends_are_nearest(blocks: int) -> None:
    model = tiny_llama()
    angles = []
    for sequence in SEQUENCES:
        states = hidden_states(model, sequence)
        cosines = torch.stack([_cosine(states[i][-1], states[i + blocks][-1]) for i in range(len(states) - blocks)])
        angles.append(cosines.double().arccos() / math.pi)
    mean = torch.stack(angles).mean(dim=0)
    pruner = ShortGpt(choose="run", average="last-token", last_block="behind-norm")
    assert pruner.means(context_of(model), _angle, across=blocks) == pytest.approx(mean.tolist(), rel=1e-4)
    first = int(mean.argmin())
    assert pruner.prune(context_of(model, blocks=blocks)).removal == Removal(map(Drop, range(first, first + blocks)))


def test_silent_neighbours_are_the_run_that_goes() -> None:
    removal = ShortGpt(choose="run").prune(context_of(tiny_llama(silent=[2, 3, 5]), blocks=2)).removal
    assert removal == Removal([Drop(2), Drop(3)])


def test_a_stream_that_is_not_finite_is_named() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.blocks[3].get_parameter("mlp.down_proj.weight").fill_(math.inf)
    with pytest.raises(PdtrimError) as error:
        ShortGpt().prune(context_of(model))
    assert str(error.value) == (
        "shortgpt: the stream in front of block 3, or 1 on, is not finite; if the weights are in float16, which overflows early, "
        'say model.dtype = "bfloat16" or "float32"'
    )


@pytest.fixture(scope="module")
def texts(smollm: BlockModel) -> list[list[int]]:
    return reference_texts(smollm.tokenizer)


@pytest.mark.model
def test_influence_and_order_are_those_of_the_authors(smollm: BlockModel, texts: list[list[int]]) -> None:
    run = reference("shortgpt")["one_by_one"]
    pruned = ShortGpt(last_block="behind-norm").prune(context_of(smollm, texts, blocks=5))
    influences = [(1 - alike) * sum(map(len, texts)) for alike in pruned.block_scores]
    assert influences == pytest.approx(run["importances"], rel=1e-4)
    order = sorted(range(30), key=lambda block: influences[block])
    assert order[:10] == run["order_asc"][:10]
    assert pruned.removal == Removal(map(Drop, run["removed"]))


@pytest.mark.model
@pytest.mark.parametrize(
    ("average", "variant"),
    [("tokens", "token_mean"), ("sequences", "sequence_mean")],
)
def test_averages_of_the_real_model_are_the_reference(
    smollm: BlockModel, texts: list[list[int]], average: str, variant: str
) -> None:
    expected = reference("similarity")[variant]
    pruned = ShortGpt.model_validate({"average": average}).prune(context_of(smollm, texts, blocks=5))
    assert [1 - alike for alike in pruned.block_scores] == pytest.approx(expected["scores"], rel=1e-4)
    assert pruned.removal == Removal(map(Drop, expected["order_asc"][:5]))


@pytest.mark.model
def test_counted_padding_gives_the_authors_other_choice(smollm: BlockModel, texts: list[list[int]]) -> None:
    run = reference("shortgpt")["padded_by_eights"]
    pruned = ShortGpt(last_block="behind-norm", padding="counted").prune(context_of(smollm, texts, blocks=5))
    positions = sum(8 * max(map(len, texts[start : start + 8])) for start in range(0, 40, 8))
    influences = [(1 - alike) * positions for alike in pruned.block_scores]
    assert influences == pytest.approx(run["importances"], rel=1e-4)
    assert sorted(range(30), key=lambda block: influences[block])[:5] == run["removed"]
    assert pruned.removal == Removal(map(Drop, run["removed"]))


@pytest.mark.model
def test_the_run_of_five_is_the_one_that_two_peers_choose(smollm: BlockModel, texts: list[list[int]]) -> None:
    run, pruneme = reference("shortgpt")["angular_run_of_5"], reference("pruneme")
    pruner = ShortGpt(choose="run", average="last-token", last_block="behind-norm")
    angles = pruner.means(context_of(smollm, texts), _angle, across=5)
    assert [40 * angle for angle in angles] == pytest.approx(run["importances"][:26], rel=1e-4)
    # It leaves out the embeddings' stream, so that its first number is of block 1.
    assert list(angles[1:]) == pytest.approx(pruneme["average_distance"], rel=1e-4)
    assert pruner.prune(context_of(smollm, texts, blocks=5)).removal == Removal(map(Drop, run["removed"]))
