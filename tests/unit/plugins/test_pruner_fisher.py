"""Fisher: what a unit is worth against a direct computation, and how kept channels take over."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core import PdtrimError, Shrink
from pdtrim_core.api import PruneContext
from pdtrim_core.testing import prune_context, tiny_llama, tiny_model
from pdtrim_plugins.pruners import Fisher
from pdtrim_plugins.pruners.fisher import Solved
from pdtrim_plugins.pruners.units import output_of, places_of

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Pruned

TEXTS = [tuple(Random(number).randrange(256) for _ in range(24)) for number in range(7)]


def context(model: BlockModel, share: float = 0.1, **more: Any) -> PruneContext:
    """Return a context whose budget is a share of all parameters."""
    return prune_context(model, TEXTS, blocks=1, parameters=round(share * model.sizes.parameters), **more)


def pruned_by(model: BlockModel, share: float = 0.1, **options: Any) -> Pruned:
    return Fisher(**{"texts": 24, "beginning": 4, "multiple": 1, **options}).prune(context(model, share))


def out_of(model: BlockModel, block: int, part: str) -> Any:
    return output_of(model, (block, part))  # type: ignore[arg-type]


def shrinks_of(pruned: Pruned) -> list[Shrink]:
    return [element for element in pruned.removal if isinstance(element, Shrink)]


def inputs_of(model: BlockModel, block: int, text: tuple[int, ...]) -> torch.Tensor:
    """What goes into the down projection of a block, `[token, channel]`."""
    seen: list[torch.Tensor] = []
    hook = out_of(model, block, "mlp").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.model(torch.tensor([text]), use_cache=False)
    hook.remove()
    return seen[0].reshape(len(text), -1)


def divergence(model: BlockModel, at: tuple[int, int], values_T: torch.Tensor, text: tuple[int, ...], start: int) -> float:
    """KL(dense || changed) along a text from a token on, where a block's channel has other values from there on."""
    block, channel = at

    def change(_module: Any, args: tuple[Any, ...]) -> tuple[torch.Tensor]:
        changed = args[0].clone().view(len(text), -1)
        changed[start:, channel] = values_T[start:]
        return (changed.view_as(args[0]),)

    with torch.no_grad():
        dense_TV = model.model(torch.tensor([text]), use_cache=False).logits[0, start:].double().log_softmax(-1)
        hook = out_of(model, block, "mlp").register_forward_pre_hook(change)
        changed_TV = model.model(torch.tensor([text]), use_cache=False).logits[0, start:].double().log_softmax(-1)
        hook.remove()
    return float((dense_TV.exp() * (dense_TV - changed_TV)).sum())


def test_a_channel_is_worth_twice_the_divergence_that_a_small_step_to_its_mean_costs() -> None:
    model, text, start, block, step = tiny_llama(), TEXTS[0][:5], 4, 3, 0.05
    means = {place: torch.zeros(output_of(model, place).in_features).double() for place in places_of(model.sizes)}
    batches = [[text] * 500] * 4
    worth_U = Fisher(beginning=start)._worth(context(model), batches, means)[block, "mlp"] / 2000
    inputs_TC = inputs_of(model, block, text)
    # One token is behind the beginning, so that a token's part of the information is all of it.
    for channel in worth_U.argsort(descending=True)[:4].tolist():
        moved_T = (1 - step) * inputs_TC[:, channel]
        assert worth_U[channel] == pytest.approx(
            2 * divergence(model, (block, channel), moved_T, text, start) / step**2, rel=0.25
        )


@pytest.mark.parametrize(("options", "beginning"), [({}, 0), ({"beginning": 5}, 5)])
def test_means_are_those_of_all_tokens_that_count(options: dict[str, int], beginning: int) -> None:
    model = tiny_llama()
    found = Fisher(**options)._means(model, [TEXTS[:4], TEXTS[4:]])[2, "mlp"]
    expected = torch.cat([inputs_of(model, 2, text)[beginning:] for text in TEXTS]).mean(0)
    assert torch.allclose(found.float(), expected, atol=1e-5)


def test_kept_channels_take_over_what_they_can_make_of_a_removed_one() -> None:
    model = tiny_llama()
    inputs_NC = torch.randn(200, out_of(model, 1, "mlp").in_features, generator=torch.Generator().manual_seed(0)) + 3
    inputs_NC[:, 5] = 2 * inputs_NC[:, 0] - inputs_NC[:, 1] + 7
    expected_NO = out_of(model, 1, "mlp")(inputs_NC)
    solved = Solved(model, Shrink(1, "mlp", (5,)), inputs_NC.mean(0))
    kept_NC = inputs_NC[:, [channel for channel in range(inputs_NC.shape[1]) if channel != 5]]
    assert not torch.allclose(solved.projection(1e-9)(kept_NC), expected_NO, atol=1e-3)
    solved.add(inputs_NC[:150])
    solved.add(inputs_NC[150:])
    assert torch.allclose(solved.projection(1e-9)(kept_NC), expected_NO, atol=1e-4)
    assert not torch.allclose(solved.projection(10.0)(kept_NC), expected_NO, atol=1e-3)


def test_without_taking_over_the_mean_of_what_went_is_a_bias() -> None:
    model = tiny_llama()
    pruned = pruned_by(model, take_over=False)
    for shrink in shrinks_of(pruned):
        out: Any = out_of(model, shrink.block, shrink.part)
        projection: Any = pruned.modules[shrink]
        removed = model.units(shrink.block).numbers(out, shrink.part, shrink.units, out=True)
        kept = [channel for channel in range(out.in_features) if channel not in removed]
        assert torch.equal(projection.weight, out.weight[:, kept])
    biases: list[Any] = [projection.bias for projection in pruned.modules.values()]
    assert any(bias.abs().max() > 0 for bias in biases)


def test_what_gives_nothing_goes_first() -> None:
    model = tiny_llama()
    up: Any = model.units(2).projections("mlp")[1]
    with torch.no_grad():
        up.weight[[3, 9]] = 0
    cost = model.units(2).parameters("mlp")
    pruned = Fisher(texts=8, beginning=4, multiple=1).prune(prune_context(model, TEXTS, blocks=1, parameters=2 * cost))
    assert list(pruned.removal) == [Shrink(2, "mlp", (3, 9))]


def test_the_budget_is_met_and_the_model_left_as_it_was() -> None:
    model = tiny_llama()
    before, wanted = model.exact_fingerprint, context(model, 0.15).parameters
    pruned = pruned_by(model, 0.15)
    removed = sum(len(shrink.units) * model.units(shrink.block).parameters(shrink.part) for shrink in shrinks_of(pruned))
    assert abs(removed - wanted) < 0.01 * wanted
    model.__dict__.pop("exact_fingerprint")
    assert model.exact_fingerprint == before
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("multiple", [8, 20, 1000])
def test_a_multiple_of_channels_is_left_of_each_mlp(multiple: int) -> None:
    model = tiny_llama()
    channels = model.units(0).count("mlp")
    left = [
        channels - len(shrink.units) for shrink in shrinks_of(pruned_by(model, 0.2, multiple=multiple)) if shrink.part == "mlp"
    ]
    assert all(count % multiple == 0 for count in left)
    assert bool(left) == (multiple < channels)


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "opt"])
def test_other_families_lose_units(family: str) -> None:
    model = tiny_model(family)
    pruned = pruned_by(model, 0.05)
    assert pruned.removal
    assert set(pruned.modules) == set(pruned.removal)


def test_nothing_is_removed_for_nothing() -> None:
    assert not Fisher().prune(prune_context(tiny_llama(), TEXTS, blocks=0, parameters=0)).removal


def test_answers_of_any_length_count_beside_the_texts() -> None:
    model = tiny_llama()
    asked: list[int] = []

    def answer(count: int) -> list[tuple[int, ...]]:
        asked.append(count)
        return [text[: 9 + number] for number, text in enumerate(TEXTS)]

    options: dict[str, Any] = {"texts": 24, "beginning": 4, "multiple": 1}
    with_both = Fisher(answers=5, **options).prune(context(model, answer=answer))
    assert asked == [5]
    assert with_both.removal != Fisher(**options).prune(context(model)).removal


def test_texts_that_are_all_beginning_are_refused() -> None:
    with pytest.raises(PdtrimError, match=r"needs texts of more than 31 tokens: raise recovery_data.answer_tokens, or lower"):
        pruned_by(tiny_llama(), beginning=30)


def test_a_context_that_writes_no_texts_says_so() -> None:
    with pytest.raises(PdtrimError, match=r"this context writes no texts: make it with pdtrim_core.testing.prune_context"):
        Fisher().prune(context(tiny_llama(), write=None))


def test_a_budget_beyond_the_units_is_refused() -> None:
    with pytest.raises(PdtrimError, match=r"pruner 'fisher' can remove 42.9 % of the parameters of tiny llama at most"):
        pruned_by(tiny_llama(), 0.7)
    with pytest.raises(PdtrimError, match=r"pruner 'fisher' can remove 57.5 % of the parameters of tiny llama at most"):
        pruned_by(tiny_llama(), 0.7, parts="both")


@pytest.mark.parametrize(("parts", "narrowed"), [("mlp", {"mlp"}), ("attention", {"attention"}), ("both", {"attention", "mlp"})])
def test_only_the_parts_that_may_be_narrowed_are(parts: str, narrowed: set[str]) -> None:
    share = 0.2 if parts == "both" else 0.1
    pruned = pruned_by(tiny_llama(), share, parts=parts)
    assert {shrink.part for shrink in shrinks_of(pruned)} == narrowed == Fisher(parts=parts).narrows


def test_a_family_whose_mlps_are_fused_is_told_what_else_there_is() -> None:
    with pytest.raises(PdtrimError) as caught:
        pruned_by(tiny_model("phi3"))
    assert str(caught.value) == (
        "pruner 'fisher' removes MLP channels, but the projections of tiny phi3 are fused or experts: choose a method that "
        "removes whole blocks, such as 'shortgpt', or search for them: leave the pruner out (with pdtrim-core prune: --preset "
        "blocks)"
    )


def test_weights_that_overflow_are_told() -> None:
    model = tiny_llama()
    with torch.no_grad():
        gate: Any = model.units(1).projections("mlp")[0]
        gate.weight[0] = float("inf")
    with pytest.raises(PdtrimError, match="is not finite"):
        Fisher(texts=4, beginning=4).prune(context(model, write=lambda count: TEXTS))


def test_it_tells_how_far_it_is() -> None:
    model, shares = tiny_llama(), list[float]()
    Fisher(texts=24, multiple=1).prune(context(model, reached=shares.append, batch_tokens=96))
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(set(shares)) == 6 + model.block_count + 1
