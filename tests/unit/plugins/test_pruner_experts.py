"""REAP and frequency: what they measure, on which tokens, and what goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch

from pdtrim_core.api import PdtrimError, PruneContext, Pruner, Removal, Shrink
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.testing import prune_context, tiny_llama
from pdtrim_plugins.pruners import Frequency, Reap
from tests.unit.mixtures import EXPERTS, GROUPED, SHAPES, experts_of, mixture

pytestmark = pytest.mark.numeric

SEQUENCES = [tuple((7 * row + 13 * place) % 250 for place in range(10 + row)) for row in range(4)]
FROM = [6, 8, 2, 9]
Width = Literal["uniform", "per-block"]


def context(model: BlockModel, experts: int, *, decode_from: Sequence[int] = FROM, **more: Any) -> PruneContext:
    """A budget of so many experts of every block that has some."""
    parameters = sum(experts * block.units["experts"][1] for block in model.sizes.blocks if block.routing is not None)
    return prune_context(model, SEQUENCES, blocks=0, parameters=parameters, decode_from=decode_from, batch_tokens=32, **more)


def naive(model: BlockModel) -> dict[int, tuple[list[float], list[int]]]:
    """REAP's mean and how often each expert was chosen, a token and an expert at a time, from whole texts through the model."""
    sums = {block: [0.0] * EXPERTS for block in experts_of(model)}
    counts = {block: [0] * EXPERTS for block in experts_of(model)}
    for sequence, start in zip(SEQUENCES, FROM, strict=True):
        for block, experts in experts_of(model).items():
            module: Any = model.blocks[block].get_submodule(experts.name)
            calls: list[Any] = []
            hook = module.register_forward_pre_hook(lambda _m, args, calls=calls: calls.append(args))
            with torch.inference_mode():
                model.model(input_ids=torch.tensor([sequence]), use_cache=False)
            hook.remove()
            hidden, chosen, weights = calls[0]
            for place in range(start, len(sequence) - 1):
                for expert, weight in zip(chosen[place].tolist(), weights[place].tolist(), strict=True):
                    with torch.inference_mode():
                        made = module(hidden[place][None], torch.tensor([[expert]]), torch.ones(1, 1))
                    sums[block][expert] += weight * float(made.norm())
                    counts[block][expert] += 1
    return {
        block: ([total / max(1, count) for total, count in zip(sums[block], counts[block], strict=True)], counts[block])
        for block in sums
    }


def lowest(scores: Sequence[float], count: int) -> tuple[int, ...]:
    return tuple(sorted(sorted(range(len(scores)), key=lambda expert: (round(scores[expert], 5), expert))[:count]))


@pytest.mark.parametrize("family", SHAPES)
def test_they_remove_what_a_plain_reading_of_the_definitions_does(family: str) -> None:
    model = mixture(family)
    found = naive(model)
    notes: list[str] = []
    reap = Reap().prune(context(model, 3, note=notes.append)).removal
    assert reap == Removal(Shrink(block, "experts", lowest(means, 3)) for block, (means, _) in found.items())
    often = Frequency().prune(context(model, 3)).removal
    assert often == Removal(Shrink(block, "experts", lowest(counts, 3)) for block, (_, counts) in found.items())
    unseen = sum(counts.count(0) for _, counts in found.values())
    said = f"{unseen} of {EXPERTS * len(found)} experts were sent no token of decode, and are the first to go"
    assert notes == ([f"{said}: more samples tell more"] if unseen else [])


def test_tokens_of_prompts_do_not_count() -> None:
    model = mixture("mixtral")
    all_tokens = Frequency().prune(context(model, 4, decode_from=())).removal
    assert all_tokens != Frequency().prune(context(model, 4)).removal
    with pytest.raises(PdtrimError) as caught:
        Reap().prune(context(model, 4, decode_from=[len(sequence) - 1 for sequence in SEQUENCES]))
    assert str(caught.value).startswith("decode runs no token of the calibration items, so that no router can be seen")


def test_per_block_widths_follow_one_ranking() -> None:
    model = mixture("mixtral")
    counts = {block: counts for block, (_, counts) in naive(model).items()}
    removal = Frequency(width="per-block").prune(context(model, 3)).removal
    gone = [counts[element.block][unit] for element in removal if isinstance(element, Shrink) for unit in element.units]
    kept = [
        counts[block][unit]
        for block in counts
        for unit in range(EXPERTS)
        if not any(unit in shrink.units for shrink in removal.shrinks_at(block))
    ]
    assert len(gone) == 4 * 3
    # Each router keeps two, however seldom.
    assert max(gone) <= sorted(kept)[8]
    assert len({len(removal.shrinks_at(block)[0].units) if removal.shrinks_at(block) else 0 for block in counts}) > 1


def test_groups_lose_alike() -> None:
    model = mixture("deepseek_v3", **GROUPED)
    for width in ("uniform", "per-block"):
        removal = Reap(width=width).prune(context(model, 4)).removal
        assert len(removal)
        for element in removal:
            model.narrowed([element], {})  # type: ignore[list-item]


@pytest.mark.parametrize("pruner", [Reap(), Frequency(), Reap(width="per-block")], ids=str)
def test_routers_keep_what_they_choose(pruner: Pruner) -> None:
    model = mixture("mixtral")
    removal = pruner.prune(context(model, EXPERTS - 2)).removal
    assert [len(element.units) for element in removal if isinstance(element, Shrink)] == [EXPERTS - 2] * 4
    with pytest.raises(PdtrimError) as caught:
        pruner.prune(context(model, EXPERTS))
    told = "parameters can go in experts, as each router needs those that it sends a token to, and the budget is"
    assert told in str(caught.value)


def test_a_step_larger_than_the_budget_is_refused() -> None:
    model = mixture("mixtral")
    facts = context(model, 1).facts
    little = type(facts)(facts.model, facts.family, facts.sizes, 0, facts.parameters // 3)
    (problem,) = Reap().problems(little)
    assert problem.startswith("reap: the smallest step removes")
    assert problem.endswith('prune more, or say width = "per-block", whose steps are smaller')
    assert Reap(width="per-block").problems(little) == []


def test_models_without_experts_are_refused() -> None:
    model = tiny_llama()
    given = prune_context(model, SEQUENCES, blocks=1, parameters=1000)
    assert Frequency().problems(given.facts) == [
        "frequency: no block of tiny llama (llama) has experts among which a router chooses"
    ]
