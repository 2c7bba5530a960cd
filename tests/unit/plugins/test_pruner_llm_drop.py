"""LLM-Drop: the parts that change the hidden states least, against sums made by hand and on models with a planted answer."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from random import Random
from typing import Any, Literal

import pytest
import torch

from pdtrim_core.api import BlockModel, DropPart, PdtrimError, Plan, Removal
from pdtrim_core.testing import prune_context, tiny_llama, tiny_model
from pdtrim_plugins.pruners import LlmDrop
from pdtrim_plugins.pruners.llm_drop import Part

pytestmark = pytest.mark.numeric

SEQUENCES = [Random(number).choices(range(256), k=length) for number, length in enumerate((11, 5, 11, 8))]


def pruned(pruner: LlmDrop, model: BlockModel, blocks: int, *, parameters: int | None = None) -> Removal:
    parameters = blocks * model.sizes.blocks[0].parameters if parameters is None else parameters
    return pruner.prune(prune_context(model, SEQUENCES, blocks=blocks, parameters=parameters)).removal


def seen_in(model: BlockModel, sequence: list[int]) -> dict[tuple[int, str], torch.Tensor]:
    """What each block of a Llama is given, and what its attention and its MLP give, without our way of running blocks."""
    seen: dict[tuple[int, str], torch.Tensor] = {}
    with ExitStack() as hooks, torch.inference_mode():
        for index, block in enumerate(model.blocks):
            for name in ("self_attn", "mlp"):

                def note(_m: object, _a: object, made: Any, key: tuple[int, str] = (index, name)) -> None:
                    seen[key] = made[0] if isinstance(made, tuple) else made

                hooks.callback(block.get_submodule(name).register_forward_hook(note).remove)

            def before(_m: object, args: Any, key: tuple[int, str] = (index, "before")) -> None:
                seen[key] = args[0]

            hooks.callback(block.register_forward_pre_hook(before).remove)
        model.model(input_ids=torch.tensor([sequence]), use_cache=False)
    return seen


def test_similarities_are_those_of_each_part_with_what_it_is_added_to() -> None:
    model = tiny_llama()
    sums: dict[tuple[int, str], float] = defaultdict(float)
    for sequence in SEQUENCES:
        seen = seen_in(model, sequence)
        for block in range(model.block_count):
            start = seen[block, "before"]
            between = start + seen[block, "self_attn"]
            behind = between + seen[block, "mlp"]
            for part, (one, two) in {"attention": (start, between), "mlp": (between, behind)}.items():
                sums[block, part] += float(torch.cosine_similarity(one, two, dim=-1).double().sum())
    tokens = sum(map(len, SEQUENCES))
    found = LlmDrop(drop="both").similarities(prune_context(model, SEQUENCES, blocks=1, parameters=1))
    assert found == {place: pytest.approx(total / tokens, abs=1e-5) for place, total in sums.items()}


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_a_part_that_does_nothing_goes_first(part: Part) -> None:
    model = tiny_llama()
    out = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}[part]
    for block in (1, 4):
        model.blocks[block].get_submodule(out).get_parameter("weight").zero_()
    planted = Removal([DropPart(block, part) for block in (1, 4)])
    assert pruned(LlmDrop(drop="both", counts="parts"), model, 2) == planted
    assert pruned(LlmDrop(drop=part, counts="parts"), model, 2) == planted


def test_as_many_parameters_go_as_so_many_blocks_have() -> None:
    model = tiny_llama()
    drops: tuple[Literal["attention", "mlp", "both"], ...] = ("attention", "mlp", "both")
    for drop in drops:
        removal = pruned(LlmDrop(drop=drop), model, 2)
        gone = model.sizes.parameters - model.sizes.kept_parameters(Plan.unified(removal), "decode")
        each = model.sizes.blocks[0]
        assert abs(gone - 2 * each.parameters) <= max(parameters for parameters, _ in each.parts.values()) / 2
        assert {part.part for part in removal.dropped_parts} <= ({drop} if drop != "both" else {"attention", "mlp"})


def test_some_attention_stays() -> None:
    model = tiny_llama()
    removal = pruned(LlmDrop(counts="parts"), model, 5)
    assert len(removal) == 5
    told = "llm-drop: 6 parts are to go, but only 5 of attention may: decode needs attention in a block"
    with pytest.raises(PdtrimError) as caught:
        pruned(LlmDrop(counts="parts"), model, 6)
    assert str(caught.value) == told


def test_a_budget_beyond_the_parts_is_refused() -> None:
    model = tiny_llama()
    with pytest.raises(PdtrimError) as caught:
        pruned(LlmDrop(), model, 4)
    sizes = model.sizes
    wanted, holds = 4 * sizes.blocks[0].parameters, 5 * sizes.blocks[0].parts["attention"][0]
    assert str(caught.value) == (
        f"llm-drop: {100 * wanted / sizes.parameters:.2f} % of the parameters are to go, but all of attention that may go has "
        f'only {100 * holds / sizes.parameters:.2f} %: ask for less, or say drop = "both"'
    )


def test_a_family_without_an_mlp_of_its_own_is_refused() -> None:
    with pytest.raises(PdtrimError) as caught:
        pruned(LlmDrop(), tiny_model("opt"), 1)
    assert str(caught.value) == "llm-drop: the mlp of tiny opt (opt) is no module of its own in each block"


def test_states_that_are_not_finite_are_refused() -> None:
    model = tiny_llama()
    model.blocks[2].get_submodule("mlp.down_proj").get_parameter("weight").fill_(float("inf"))
    with pytest.raises(PdtrimError) as caught:
        pruned(LlmDrop(drop="mlp", counts="parts"), model, 1)
    assert str(caught.value).startswith("llm-drop: the hidden states at the mlp of block 2 are not finite; ")
