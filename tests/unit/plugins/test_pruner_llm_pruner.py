"""LLM-Pruner: the groups that the authors' code removes, the formulas, what a budget takes, and what it refuses."""

from __future__ import annotations

import json
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import PdtrimError, Plan, PruneContext, Removal
from pdtrim_core.testing import prune_context, tiny_llama, tiny_model
from pdtrim_plugins.pruners import LlmPruner
from pdtrim_plugins.pruners import channels as ch
from pdtrim_plugins.pruners.gradients import with_gradients
from tests.reference import reference, reference_text

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel

WINDOWS = [tuple(Random(number).choices(range(256), k=16)) for number in range(3)]


def context_of(model: BlockModel, parameters: int, sequences: Any = WINDOWS, **options: Any) -> PruneContext:
    return prune_context(model, sequences, blocks=1, parameters=parameters, rng=Random(0), **options)


def removal_of(model: BlockModel, parameters: int, **options: Any) -> Removal:
    return LlmPruner(**{"tokens": 16, **options}).prune(context_of(model, parameters)).removal


def gone(model: BlockModel, removal: Removal) -> int:
    return model.sizes.parameters - model.sizes.kept_parameters(Plan.unified(removal), "decode")


def units_of(removal: Removal, part: str) -> dict[int, tuple[int, ...]]:
    return {e.blocks[0]: e.units for e in removal if e.part == part}  # type: ignore[union-attr]


def gradients_of(model: BlockModel, windows: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss over some windows, the plain way."""
    model.model.requires_grad_(True)
    ids = torch.tensor(windows)
    model.model(input_ids=ids, labels=ids).loss.backward()
    found = {name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None}
    model.model.zero_grad()
    model.model.requires_grad_(False)
    return found


@pytest.mark.numeric
@pytest.mark.model
def test_the_groups_are_those_that_the_authors_code_removes(smollm: BlockModel) -> None:
    expected, tokens = reference("llm_pruner"), reference_text(smollm.tokenizer)
    wanted = smollm.sizes.parameters - expected["params_after"]
    context = context_of(smollm, wanted, [tokens])
    common: dict[str, Any] = {"samples": 9, "first_block": 4, "last_block": 25}

    removal = LlmPruner(gqa="peer", **common).prune(context).removal
    assert gone(smollm, removal) == wanted
    channels, heads = units_of(removal, "mlp"), units_of(removal, "attention")
    digests = {str(block): sha256(json.dumps(list(units)).encode()).hexdigest() for block, units in channels.items()}
    assert digests == expected["mlp_sha256"]
    assert [heads[block] for block in range(4, 26)] == [(head,) for head in expected["kv_head_of_blocks_4_to_25"]]
    losses = [loss_of(smollm, context.windows(64, 9), each) for each in (Removal(), removal)]
    assert losses == pytest.approx([expected["loss_before"], expected["loss_after"]], rel=1e-3)

    right = units_of(LlmPruner(parts="attention", **common).prune(context_of(smollm, 22 * 294912, [tokens])).removal, "attention")
    assert [right[block] for block in range(4, 26)] == [(head,) for head in expected["kv_head_repeat_kv_of_blocks_4_to_25"]]


def loss_of(model: BlockModel, windows: list[tuple[int, ...]], removal: Removal) -> float:
    return context_of(model, 0, windows).loss_of(windows)(removal)


@pytest.mark.numeric
@pytest.mark.parametrize("taylor", ["param_first", "param_second", "param_mix", "vectorize"])
@pytest.mark.parametrize("batch_tokens", [16, 64])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_channels_importance_is_the_formulas(taylor: str, batch_tokens: int, family: str) -> None:
    model = tiny_model(family)
    each = [gradients_of(model, [window]) for window in WINDOWS]
    sums = torch.zeros(48, dtype=torch.float64)
    for name, along in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0)):
        key = f"model.layers.3.mlp.{name}.weight"
        w = model.model.get_parameter(key).double()
        g = torch.stack([found[key] for found in each]).double()
        salience = {
            "param_first": w * g.mean(0),
            "vectorize": w * g.mean(0),
            "param_second": w**2 * (g**2).mean(0),
            "param_mix": w * g.mean(0) - 0.5 * w**2 * (g**2).mean(0),
        }[taylor]
        sums += salience.sum(along).abs() if taylor == "vectorize" else salience.abs().sum(along)
    options = {"taylor": taylor, "tokens": 16, "parts": "mlp", "first_block": 3, "last_block": 3}
    pruner = LlmPruner.model_validate(options)
    numbers = pruner._importance(model, [(3, "mlp")], WINDOWS, batch_tokens)[3, "mlp"]
    # float32 against float64, in sums of 96.
    assert numbers.tolist() == pytest.approx(sums.tolist(), rel=1e-4, abs=1e-6)
    for count in (5, 20, 40):
        removal = pruner.prune(context_of(model, count * 96, batch_tokens=batch_tokens)).removal
        assert units_of(removal, "mlp") == {3: tuple(sorted(sums.argsort()[:count].tolist()))}


@pytest.mark.numeric
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "prod"])
@pytest.mark.parametrize("gqa", ["repeat_kv", "peer"])
def test_a_heads_importance_counts_the_query_heads_that_read_it(reduce: str, gqa: str) -> None:
    model = tiny_llama(num_attention_heads=8, num_key_value_heads=4)
    found = gradients_of(model, WINDOWS)
    for block in range(6):
        members = []
        for name in "qkvo":
            key = f"model.layers.{block}.self_attn.{name}_proj.weight"
            salience = (model.model.get_parameter(key) * found[key]).abs().double().sum(0 if name == "o" else 1)
            heads = salience.view(-1, 4)
            readers = [[j, j + 4] if gqa == "peer" else [2 * j, 2 * j + 1] for j in range(4)]
            members.append(torch.stack([heads[of].sum(0) for of in readers]) if len(heads) == 8 else heads)
        stacked = torch.stack(members)
        reduced = {"sum": stacked.sum(0), "mean": stacked.mean(0), "max": stacked.amax(0), "prod": stacked.prod(0)}[reduce]
        expected = tuple(sorted(reduced.sum(1).argsort()[:2].tolist()))
        size = model.sizes.blocks[0].units["attention"][1]
        options = {"reduce": reduce, "gqa": gqa, "parts": "attention", "first_block": block, "last_block": block}
        assert units_of(removal_of(model, 2 * size, **options), "attention") == {block: expected}


def test_the_two_ways_of_counting_query_heads_are_not_the_same() -> None:
    model = tiny_llama(num_attention_heads=8, num_key_value_heads=4)
    one, other = (removal_of(model, 6 * 4 * 4 * 2 * 32, parts="attention", gqa=gqa) for gqa in ("repeat_kv", "peer"))
    assert one != other


@pytest.mark.numeric
@pytest.mark.parametrize("width", ["uniform", "per-block"])
def test_a_local_budget_takes_the_same_share_of_each_block(width: str) -> None:
    model = tiny_llama()
    for parameters in (3000, 8123, 15488, 24000):
        removal = removal_of(model, parameters, width=width, first_block=1, last_block=4)
        counts = {block: len(units) for block, units in units_of(removal, "mlp").items()}
        assert set(counts) == {1, 2, 3, 4}
        assert max(counts.values()) - min(counts.values()) <= (0 if width == "uniform" else 1)
        assert abs(gone(model, removal) - parameters) <= (4 if width == "uniform" else 1) * 96 / 2


def test_a_global_budget_takes_one_threshold_over_the_blocks() -> None:
    model = tiny_llama(silent=[2])
    removal = removal_of(model, 47 * 96, parts="mlp", scope="global", width="per-block", first_block=0, last_block=5)
    # A silent block has no importance at all; one channel of it must stay.
    assert {block: len(units) for block, units in units_of(removal, "mlp").items()} == {2: 47}


def test_a_share_of_one_head_takes_one_head() -> None:
    model = tiny_llama(hidden_size=48, num_attention_heads=6, num_key_value_heads=3)
    heads, channels = (model.sizes.blocks[0].units[part] for part in ("attention", "mlp"))
    removal = removal_of(model, 6 * (heads[1] + 16 * channels[1]))
    assert {len(units) for units in units_of(removal, "attention").values()} == {1}
    assert {len(units) for units in units_of(removal, "mlp").values()} == {16}


def test_heads_go_where_channels_cannot_give_enough() -> None:
    model = tiny_llama(intermediate_size=4)
    removal = removal_of(model, 6 * (1536 + 96))
    assert {len(units) for units in units_of(removal, "attention").values()} == {1}
    assert {len(units) for units in units_of(removal, "mlp").values()} == {1}


def test_ends_are_left_alone_where_blocks_may_differ() -> None:
    model = tiny_llama(num_hidden_layers=32)
    assert set(units_of(removal_of(model, 20_000, width="per-block"), "mlp")) == set(range(4, 30))
    assert set(units_of(removal_of(model, 20_000), "mlp")) == set(range(32))


def test_the_windows_are_as_many_and_as_long_as_said() -> None:
    model = tiny_llama()
    one, three = (removal_of(model, 9999, samples=samples) for samples in (1, 3))
    assert one != three
    assert one == LlmPruner(tokens=16).prune(context_of(model, 9999, WINDOWS[:1])).removal
    assert removal_of(model, 9999, tokens=8) != three


FUSED = "because this family's projections are fused, or are experts"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "contradiction": (
        "llama",
        {"scope": "global"},
        'scope = "global" gives each block its own width: say width = "per-block", or scope = "local"',
    ),
    "fused": ("phi3", {}, f"tiny phi3: block 0 cannot lose K/V heads, {FUSED}: choose a method that removes whole blocks"),
    "experts": ("mixtral", {}, f'tiny mixtral: block 0 cannot lose MLP channels, {FUSED}: say parts = "attention"'),
    "no such block": (
        "llama",
        {"first_block": 4, "last_block": 6},
        "first_block = 4 and last_block = 6 leave no block to remove units from: tiny llama has blocks 0 to 5",
    ),
    "no window": (
        "llama",
        {"tokens": 64},
        "the calibration items have 48 tokens together, too few for a window of 64: ask for shorter windows or for more samples",
    ),
    "too few blocks": (
        "llama",
        {"first_block": 2, "last_block": 3},
        (
            "at most 12,096 parameters of blocks 2 to 3 can be removed, as a unit of each part stays, and the budget is 15,000: "
            'prune less, prune more blocks (first_block, last_block), or say parts = "both"'
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_do_it_says(case: str) -> None:
    family, options, message = REFUSED[case]
    with pytest.raises(PdtrimError) as raised:
        removal_of(tiny_model(family), 15_000, **options)
    assert str(raised.value) == message


def test_a_single_head_stays() -> None:
    model = tiny_llama(num_key_value_heads=1)
    assert not units_of(removal_of(model, 20_000), "attention")
    with pytest.raises(PdtrimError, match="at most 0 parameters of blocks 0 to 5 can be removed"):
        removal_of(model, 20_000, parts="attention")


def test_a_budget_below_every_step_is_refused() -> None:
    with pytest.raises(PdtrimError) as raised:
        removal_of(tiny_llama(), 700, parts="attention")
    assert str(raised.value) == (
        "the smallest step removes 9,216 parameters from blocks 0 to 5, and the budget is 700: prune more, or say "
        'width = "per-block" or parts = "both", whose steps are smaller'
    )


def test_query_heads_that_do_not_divide_are_refused() -> None:
    model = tiny_llama()
    model.blocks[2].self_attn.q_proj = torch.nn.Linear(32, 33)  # type: ignore[union-attr]
    with pytest.raises(PdtrimError) as raised:
        removal_of(model, 9999)
    assert str(raised.value) == ('tiny llama: the 33 query channels of block 2 do not divide into 2 K/V heads: say parts = "mlp"')


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float16, 'say model.dtype = "float32" or "bfloat16"'),
        (torch.bfloat16, 'say model.dtype = "float32"'),
        (torch.float32, "the checkpoint may be damaged"),
    ],
)
def test_a_loss_that_is_not_finite_is_refused_and_nothing_is_left_behind(dtype: torch.dtype, advice: str) -> None:
    model = tiny_llama(dtype=dtype)
    model.model.get_parameter("model.layers.5.mlp.down_proj.weight")[0, 0] = float("inf")
    with pytest.raises(PdtrimError) as raised:
        removal_of(model, 9999)
    name = str(dtype).removeprefix("torch.")
    assert str(raised.value) == f"tiny llama: the loss over the calibration windows is not finite in {name}: {advice}"
    assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    # Nothing but the gradient overflows.
    def overflow(module: Any, into: Any, out: Any) -> Any:
        return (into[0] * 1e9, *into[1:])

    model = tiny_llama(dtype=torch.float16)
    model.blocks[5].register_full_backward_hook(overflow)
    with pytest.raises(PdtrimError) as raised:
        removal_of(model, 9999)
    assert str(raised.value) == 'tiny llama: a gradient is not finite in float16: say model.dtype = "float32" or "bfloat16"'
    assert not any(p.requires_grad or p.grad is not None for p in model.model.parameters())


def test_gradients_of_one_part_are_in_memory_at_a_time() -> None:
    model = tiny_llama()
    weights = ch.weights(model, [(block, part) for block in range(6) for part in ch.PARTS])
    held: list[set[ch.Place]] = []

    def use(place: ch.Place) -> None:
        assert all(weight.grad is not None for weight in weights[place])
        held.append({each for each, of_place in weights.items() if any(weight.grad is not None for weight in of_place)})

    with_gradients(model, weights, WINDOWS, use)
    assert sorted(place for places in held for place in places) == sorted(weights)
    assert all(len(places) == 1 for places in held)


def test_half_precision_finds_nearly_the_same() -> None:
    full, half = (units_of(removal_of(tiny_llama(dtype=dtype), 15_488), "mlp") for dtype in (torch.float32, torch.bfloat16))
    # bfloat16 keeps 8 bits: few of the 27 channels change.
    assert all(len(set(full[block]) & set(half[block])) >= 22 for block in range(6))
