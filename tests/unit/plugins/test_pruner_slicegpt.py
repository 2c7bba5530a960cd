"""SliceGPT: rotations change nothing, what is cut is what varies least, and the budget counts the rotations."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import BlockModel, Item, PdtrimError, Plan
from pdtrim_core.data.items import calibrate
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.testing import prune_context, tiny_llama, tiny_model
from pdtrim_plugins.calibrations import Mini
from pdtrim_plugins.pruners import SliceGpt
from pdtrim_plugins.pruners.rotation import Slicer, principal_axes
from pdtrim_plugins.pruners.slicegpt import nearest_width, sliced_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENS = Random(0).choices(range(256), k=256)
WINDOWS = [tuple(TOKENS[start : start + 32]) for start in range(0, 256, 32)]
ROUNDING = 1e-3
"""Logits are around 10, and float32 sums in another basis differ by 1e-5 of that a block."""
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {}),
]


def stirred(model: BlockModel) -> BlockModel:
    """Return a model whose norms' weights and biases are random as well; a new one has ones and zeros."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.model.parameters():
        if parameter.dim() == 1:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.5 + 1).to(parameter.dtype)
    return model


def logits(model: BlockModel, windows: Sequence[Sequence[int]] = WINDOWS) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.model(input_ids=torch.tensor(windows), use_cache=False).logits
    return found


def sliced(model: BlockModel, width: int, windows: Sequence[Sequence[int]] = WINDOWS, *, normed: bool = False) -> BlockModel:
    return Slicer(model, width, normed=normed).slice(windows)


def pruned(model: BlockModel, parameters: int, sequences: Sequence[Sequence[int]] = WINDOWS, **options: Any) -> BlockModel:
    context = prune_context(model, sequences, blocks=1, parameters=parameters, rng=Random(0))
    found = SliceGpt(**options).prune(context).replaced
    assert found is not None
    return found


@pytest.mark.numeric
@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_rotations_alone_change_no_logit(family: str, settings: dict[str, Any]) -> None:
    model = stirred(tiny_model(family, **settings))
    rotated = sliced(model, 32)
    assert rotated.blocks[3].get_parameter("mlp_shortcut").shape == (32, 32)
    # The shortcuts are rotations and no identities, so this is not the dense model under another name.
    assert (rotated.blocks[3].get_parameter("mlp_shortcut") - torch.eye(32)).abs().max() > 0.1
    assert (logits(rotated) - logits(model)).abs().max() < ROUNDING
    assert logits(model).std() > 1


@pytest.mark.numeric
@pytest.mark.model
def test_rotations_alone_change_no_logit_of_the_real_model(smollm: BlockModel) -> None:
    window = Random(0).choices(range(1000, 40000), k=48)
    rotated = sliced(smollm, 576, [window])
    assert (logits(rotated, [window]) - logits(smollm, [window])).abs().max() < ROUNDING
    assert rotated.sizes.parameters == sliced_parameters(smollm, 576) > smollm.sizes.parameters


@pytest.mark.numeric
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_a_stream_that_lives_in_few_directions_loses_nothing_when_the_others_go(tied: bool, normed: bool) -> None:
    model = stirred(tiny_llama(tie_word_embeddings=tied))
    basis = torch.linalg.qr(torch.randn(32, 20, generator=torch.Generator().manual_seed(2)))[0]
    with torch.no_grad():
        embedding = model.model.get_input_embeddings().weight
        embedding.copy_(embedding @ basis @ basis.T)
        for block in model.blocks:
            for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                weight = block.get_parameter(name)
                weight.copy_(basis @ basis.T @ weight)
    assert (logits(sliced(model, 20, normed=normed)) - logits(model)).abs().max() < ROUNDING
    assert (logits(sliced(model, 19, normed=normed)) - logits(model)).abs().max() > 0.1


@pytest.mark.numeric
def test_the_more_is_cut_the_farther_the_model_is_from_the_dense_one() -> None:
    model = stirred(tiny_llama())
    gaps = [(logits(sliced(model, width)) - logits(model)).pow(2).mean() for width in (32, 28, 20, 8)]
    assert gaps == sorted(gaps)


@pytest.mark.parametrize(("family", "settings"), MODELS)
def test_parameters_are_counted_as_they_come_out(family: str, settings: dict[str, Any]) -> None:
    model = tiny_model(family, **settings)
    for width in (32, 24, 7):
        assert sliced_parameters(model, width) == sliced(model, width, WINDOWS[:2]).sizes.parameters


def test_the_nearest_width_is_taken() -> None:
    model = tiny_llama()
    for width in (31, 20, 3):
        fewer = model.sizes.parameters - sliced_parameters(model, width)
        if fewer > 0:
            assert nearest_width(model, fewer) == nearest_width(model, fewer + 30) == nearest_width(model, fewer - 30) == width
    assert nearest_width(model, 0) == 32


def test_a_large_stream_is_cut_to_multiples_of_eight() -> None:
    model = tiny_llama(hidden_size=256, num_hidden_layers=2)
    widths = {nearest_width(model, fewer) for fewer in range(10_000, model.sizes.parameters // 2, 5_000)}
    assert len(widths) > 8
    assert all(width % 8 == 0 for width in widths)


def test_costs_are_those_of_the_narrow_blocks() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    narrow = sliced(model, 20)
    first, inner, *_, last = narrow.sizes.blocks
    # Q, K and V, then O, then gate, up and down, then the two shortcuts; K/V heads take 16 numbers, the MLP 48.
    assert inner.parameters == 20 * (32 + 16 + 16) + 32 * 20 + 3 * 20 * 48 + 2 * 20 * 20
    assert first.parameters == 32 * (32 + 16 + 16) + 32 * 20 + 3 * 20 * 48 + 32 * 20 + 20 * 20
    assert last.parameters == 20 * (32 + 16 + 16) + 32 * 20 + 2 * 20 * 48 + 48 * 32 + 20 * 20 + 20 * 32
    assert inner.kv_parameters == 2 * 20 * 16
    assert narrow.sizes.kv_bytes(Plan()) == model.sizes.kv_bytes(Plan())
    assert narrow.sizes.decode_bytes(Plan()) == 4 * (narrow.sizes.head + sum(block.parameters for block in narrow.sizes.blocks))


def test_tied_embeddings_stay_the_heads() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    narrow = sliced(model, 20).model
    assert narrow.get_input_embeddings().weight is narrow.get_output_embeddings().weight
    assert narrow.get_output_embeddings().weight is model.model.get_output_embeddings().weight
    apart = sliced(tiny_llama(), 20).model
    assert apart.get_input_embeddings().weight.shape == (260, 20)


@pytest.mark.numeric
def test_scoring_and_two_phases_with_a_cache_agree_with_the_models_own_forward() -> None:
    narrow = sliced(stirred(tiny_llama()), 20)
    staged = StagedModel(PrefixCache(narrow), Plan())
    own = logits(narrow, [TOKENS[:13]])[0, 7:]
    in_phases = TwoPhaseModel(narrow, Plan()).continuation_logits(TOKENS[:8], TOKENS[8:14])
    assert (in_phases - own).abs().max() < ROUNDING
    item = Item((tuple(TOKENS[:8]),), (tuple(TOKENS[8:14]),), 0, (6,), "")
    expected = own.log_softmax(-1)[range(6), TOKENS[8:14]].sum().item()
    assert staged.loglikelihoods([item])[0] == pytest.approx([expected], abs=ROUNDING)


@pytest.mark.numeric
def test_axes_are_orthogonal_and_the_widest_comes_first() -> None:
    wide = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 5, 3, 9, 7.0])
    moment = wide.T @ wide
    axes = principal_axes(moment)
    assert torch.allclose(axes.T @ axes, torch.eye(5, dtype=torch.float64), atol=1e-12)
    spread = (axes.T @ moment @ axes).diagonal()
    assert spread.tolist() == sorted(spread.tolist(), reverse=True)
    assert axes[:, 0].abs().argmax() == 3


def test_options_decide_what_the_components_are_of() -> None:
    model = stirred(tiny_llama())
    fewer = 2 * model.sizes.blocks[0].parameters
    options: list[dict[str, Any]] = [{}, {"window": 16}, {"windows": 1}, {"signal": "normed"}]
    made = {pruned(model, fewer, **{"window": 32, **changes}).fingerprint for changes in options}
    assert len(made) == len(options)


@pytest.mark.numeric
@pytest.mark.model
def test_a_slice_of_the_real_model_beats_dropping_as_much_at_random(smollm: BlockModel) -> None:
    samples = list(Mini().draw(128, Random(0)))
    sequences = [item.tokens for item in calibrate(samples, [], smollm.tokenizer).items]
    context = prune_context(smollm, sequences, blocks=4, parameters=0, rng=Random(0))
    *seen, unseen, other = context.windows(128)
    narrow = pruned(smollm, round(0.1 * smollm.sizes.parameters), seen[:16])
    share = narrow.sizes.parameters / smollm.sizes.parameters
    assert share == pytest.approx(0.9, abs=0.01)

    def loss(model: BlockModel) -> float:
        windows = [unseen, other]
        return torch.nn.functional.cross_entropy(logits(model, windows)[:, :-1].mT, torch.tensor(windows)[:, 1:]).item()

    dense, cut = loss(smollm), loss(narrow)
    at_random = []
    for seed in range(5):
        gone = Random(seed).sample(range(30), 4)
        with smollm.patched({block: lambda hidden, **_rest: hidden for block in gone}):
            at_random.append(loss(smollm))
    print(f"dense {dense:.3f}, {100 * (1 - share):.1f} % fewer parameters {cut:.3f}, 4 blocks at random {at_random}")
    assert cut < dense + 1
    assert cut < min(at_random)


def test_other_families_are_refused() -> None:
    with pytest.raises(PdtrimError) as caught:
        pruned(tiny_model("gemma3"), 100)
    assert str(caught.value) == (
        "slicegpt can rotate models of the families llama, mistral, qwen2, qwen3, and tiny gemma3 is of gemma3_text: choose "
        "another pruner"
    )


def test_a_budget_out_of_reach_is_refused() -> None:
    model = tiny_llama()
    whole = model.sizes.parameters
    most = whole - sliced_parameters(model, 1)
    with pytest.raises(PdtrimError) as caught:
        pruned(model, most + 1, window=32)
    assert str(caught.value) == (
        f"slicegpt can remove at most {most} of the {whole} parameters of tiny llama, and the budget is {most + 1}: remove "
        "less, or choose another pruner"
    )
    assert pruned(model, most, window=32).sizes.parameters == whole - most


def test_too_few_tokens_are_refused_or_told() -> None:
    model = tiny_llama()
    with pytest.raises(PdtrimError) as caught:
        pruned(model, 100, [(1, 2, 3)])
    assert str(caught.value) == (
        "the calibration items have 3 tokens together, too few for a window of 128: ask for shorter windows or for more samples"
    )
    notes: list[str] = []
    context = prune_context(model, [(1, 2, 3)], blocks=1, parameters=7000, rng=Random(0), note=notes.append)
    SliceGpt(window=3).prune(context)
    width = nearest_width(model, 7000)
    assert notes == [
        f"slicegpt cut the hidden size from 32 to {width}, computed on 3 tokens",
        "slicegpt: 3 tokens are too few for 32 principal components: use more calibration samples",
    ]


def test_a_stream_that_is_not_finite_is_refused() -> None:
    model = tiny_llama()
    model.blocks[2].get_parameter("self_attn.o_proj.weight").data.fill_(3e38)
    with pytest.raises(PdtrimError) as caught:
        pruned(model, 100, window=32)
    assert str(caught.value) == (
        "slicegpt: the hidden states after the attention of block 2 of tiny llama are not finite: open the model with dtype "
        "float32 or bfloat16"
    )


@pytest.mark.numeric
def test_a_model_in_half_precision_stays_in_it() -> None:
    model = stirred(tiny_llama(dtype=torch.bfloat16))
    narrow = sliced(model, 20)
    assert {parameter.dtype for parameter in narrow.model.parameters()} == {torch.bfloat16}
    gap = (logits(sliced(model, 32)) - logits(model)).float()
    # Two more matrix products a block, each rounded to eight bits.
    assert gap.pow(2).mean().sqrt() < 0.2 * logits(model).float().std()
