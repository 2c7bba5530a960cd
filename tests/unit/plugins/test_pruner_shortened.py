"""Shortened LLaMA: both orders, against the authors' figures and against autograd and perplexity over the whole model."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, PdtrimError, PruneContext, Pruner, Removal
from pdtrim_core.testing import FAMILIES, prune_context, tiny_llama, tiny_model
from pdtrim_plugins.pruners import ShortenedPpl, ShortenedTaylor
from pdtrim_plugins.pruners.shortened import taylor_importances
from tests.reference import reference, reference_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdtrim_core.api import BlockModel

pytestmark = pytest.mark.numeric

TOKENS = Random(0).choices(range(256), k=67)
BOTH: list[type[Pruner]] = [ShortenedPpl, ShortenedTaylor]


def context_of(model: BlockModel, tokens: Sequence[int] = TOKENS, *, blocks: int, **options: Any) -> PruneContext:
    parameters = blocks * model.sizes.blocks[0].parameters
    return prune_context(model, [tokens], blocks=blocks, parameters=parameters, rng=Random(0), **options)


def windows_of(length: int, count: int) -> list[list[int]]:
    return [TOKENS[number * length : (number + 1) * length] for number in range(count)]


def loss_of(model: BlockModel, windows: Sequence[Sequence[int]]) -> torch.Tensor:
    ids = torch.tensor(windows)
    logits = model.model(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:].flatten())


def taylor_by_hand(model: BlockModel, windows: Sequence[Sequence[int]]) -> list[float]:
    """Return the sums of |w * g| from one backward pass of the model's own loss."""
    model.model.requires_grad_(requires_grad=True)
    loss_of(model, windows).backward()  # type: ignore[no-untyped-call]
    return [
        sum(
            (parameter * parameter.grad).abs().sum().item()
            for name, parameter in block.named_parameters()
            if not name.endswith("bias") and parameter.grad is not None
        )
        for block in model.blocks
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_importances_are_those_of_one_backward_pass_of_the_whole_model(family: str) -> None:
    windows = windows_of(16, 4)
    importances = taylor_importances(tiny_model(family), windows)
    assert importances == pytest.approx(taylor_by_hand(tiny_model(family), windows), rel=1e-4)
    assert min(importances) > 0


@pytest.mark.parametrize("batch_tokens", [1, 16, 40, 1024])
def test_weight_times_gradient_is_summed_with_its_sign_whatever_the_batch(batch_tokens: int) -> None:
    windows = windows_of(16, 4)
    whole = taylor_importances(tiny_llama(), windows, 1024)
    assert taylor_importances(tiny_llama(), windows, batch_tokens) == pytest.approx(whole, rel=1e-5)
    apart = [taylor_importances(tiny_llama(), [window]) for window in windows]
    mean_of_sizes = [sum(of_block) / 4 for of_block in zip(*apart, strict=True)]
    assert all(size > 1.1 * signed for size, signed in zip(mean_of_sizes, whole, strict=True)), "signs cancel between windows"


def test_biases_do_not_count() -> None:
    found = []
    for by in (taylor_importances, taylor_by_hand):
        model = tiny_model("opt")
        # transformers starts from biases of zero, which would count for nothing anyway.
        for name, parameter in model.model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.full_like(parameter, 0.5))
        found.append(by(model, windows_of(16, 2)))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_half_precision_gives_nearly_the_same_importances() -> None:
    windows = windows_of(16, 4)
    full, half = taylor_importances(tiny_llama(), windows), taylor_importances(tiny_llama(dtype=torch.bfloat16), windows)
    # bfloat16 has eight bits, and what a block gets has come through all blocks behind it.
    assert half == pytest.approx(full, rel=0.1)


def test_perplexity_takes_the_loss_without_each_block_alone() -> None:
    model = tiny_llama()
    pruned = ShortenedPpl(window=16, plus=False).prune(context_of(model, blocks=5))
    losses = []
    for block in range(6):
        with torch.inference_mode(), model.patched({block: lambda hidden, *_, **__: hidden}):
            losses.append(loss_of(model, windows_of(16, 4)).item())
    assert [-score for score in pruned.block_scores] == pytest.approx(losses, rel=1e-5)
    worst = losses.index(max(losses))
    assert pruned.removal == Removal(Drop(block) for block in range(6) if block != worst)
    assert ShortenedPpl(window=16, plus=False).prune(context_of(model, blocks=1)).removal == Removal(
        [Drop(losses.index(min(losses)))]
    )


def own_words(model: BlockModel) -> list[int]:
    """Return what a model itself says, so that its loss grows with blocks that do something."""
    words = [141]
    with torch.inference_mode():
        while len(words) < 32:
            words.append(int(model.model(torch.tensor([words]), use_cache=False).logits[0, -1].argmax()))
    return words


@pytest.mark.parametrize("pruner", BOTH)
def test_the_plus_keeps_the_first_four_blocks_and_the_last_two(pruner: type[Pruner]) -> None:
    model = tiny_llama(num_hidden_layers=9, silent=[0, 1, 2, 3, 7, 8])
    with_plus, without = (
        pruner.model_validate({"window": 16, **options}).prune(context_of(model, own_words(model), blocks=3))
        for options in ({}, {"plus": False})
    )
    assert with_plus.removal == Removal(map(Drop, (4, 5, 6)))
    assert without.removal != with_plus.removal
    assert with_plus.block_scores == without.block_scores
    assert len(with_plus.block_scores) == 9


@pytest.mark.parametrize("pruner", BOTH)
@pytest.mark.parametrize(("there", "free"), [(6, 0), (8, 2), (3, 0)])
def test_too_few_blocks_beside_those_that_stay_are_told(pruner: type[Pruner], there: int, free: int) -> None:
    model = tiny_llama(num_hidden_layers=there)
    with pytest.raises(PdtrimError) as error:
        pruner.model_validate({"window": 16}).prune(context_of(model, blocks=free + 1))
    assert str(error.value) == (
        f"{pruner.name}: asked to remove {free + 1} of the {there} blocks, but only {free} may be, because the first 4 and the "
        f"last 2 always stay: {f'remove at most {free}, or ' if free else ''}say plus = false"
    )


@pytest.mark.parametrize("pruner", BOTH)
@pytest.mark.parametrize(("options", "windows"), [({"window": 16}, 4), ({"window": 16, "windows": 2}, 2), ({"window": 33}, 2)])
def test_scores_are_of_so_many_windows(pruner: type[Pruner], options: dict[str, int], windows: int) -> None:
    scores = pruner.model_validate({**options, "plus": False}).prune(context_of(tiny_llama(), blocks=1)).block_scores
    cut = [token for window in windows_of(options["window"], windows) for token in window]
    again = pruner.model_validate({"window": options["window"], "plus": False}).prune(context_of(tiny_llama(), cut, blocks=1))
    assert scores == pytest.approx(again.block_scores, rel=1e-6)
    if windows == 2:
        other = pruner.model_validate({"window": 16, "plus": False}).prune(context_of(tiny_llama(), blocks=1))
        assert scores != pytest.approx(other.block_scores, rel=1e-3)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.blocks[3].get_parameter("mlp.down_proj.weight").fill_(math.nan)
    with pytest.raises(PdtrimError) as error:
        ShortenedTaylor(window=16, plus=False).prune(context_of(model, blocks=1))
    assert str(error.value) == (
        "shortened-taylor: the gradient of block 0 is not finite; if the weights are in float16, which overflows early, say "
        'model.dtype = "bfloat16" or "float32"'
    )


def test_a_window_longer_than_all_items_is_refused() -> None:
    with pytest.raises(PdtrimError) as error:
        ShortenedTaylor(window=68, plus=False).prune(context_of(tiny_llama(), blocks=1))
    assert str(error.value) == (
        "the calibration items have 67 tokens together, too few for a window of 68: ask for shorter windows or for more samples"
    )


@pytest.mark.model
def test_perplexities_are_those_of_the_authors(smollm: BlockModel) -> None:
    ppl = reference("shortened_llm")["ppl"]
    first_of_sleb = reference("sleb")["phases"][0]["candidate_loss"]
    pruned = ShortenedPpl().prune(context_of(smollm, reference_text(smollm.tokenizer), blocks=24))
    losses = [-score for score in pruned.block_scores]
    assert [math.exp(loss) for loss in losses] == pytest.approx(ppl["by_block"], rel=1e-4)
    assert [4 * 128 * losses[int(block)] for block in first_of_sleb] == pytest.approx(list(first_of_sleb.values()), rel=1e-5)
    assert sorted(range(30), key=lambda block: losses[block]) == ppl["order_asc"]
    expected = ppl["order_after_plus_heuristic"]
    assert pruned.removal == Removal(map(Drop, expected))


@pytest.mark.model
def test_taylor_importances_and_order_are_those_of_the_authors(smollm: BlockModel) -> None:
    taylor = reference("shortened_llm")["taylor"]
    pruned = ShortenedTaylor(window=64).prune(context_of(smollm, reference_text(smollm.tokenizer), blocks=12))
    importances = [-score for score in pruned.block_scores]
    assert importances == pytest.approx(taylor["by_block"], rel=1e-3)
    assert sorted(range(30), key=lambda block: importances[block]) == taylor["order_asc"]
    assert pruned.removal == Removal(map(Drop, taylor["order_after_plus_heuristic"][:12]))
