"""What a walk shows of a stage is what the stage computes, and of the dense model what that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, Item, KvOnly, LayerOf, Plan, Removal
from pdtrim_core.execution.stage_walk import walk
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.execution.walked import Walked
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import BLOCKS, FROZEN, MERGE, PLANS, THREE, replacements, some_items

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel
    from pdtrim_core.plan.elements import Stage

pytestmark = pytest.mark.numeric

CUT = Plan(Removal([Drop(3), KvOnly(5)]), Removal([Drop(1), Drop(3)]))


def texts() -> list[Item]:
    """Texts of unlike lengths, each a prompt and what follows; one has a prompt of one token, which prefill does not read."""
    items = [Item(item.prompts[:1], item.choices[:1], 0, (1,), item.name) for item in some_items()]
    return [*items, Item(((7,),), ((1, 2, 3),), 0, (1,), "short")]


def walked(model: BlockModel, plan: Plan, modules: Any = None) -> Walked:
    return Walked(model, plan, dict(modules or {}), texts(), batch_tokens=64)


def tokens_of(stage: Stage, item: Item) -> list[int]:
    """The positions of a text that are a stage's, without the first."""
    prompt, whole = len(item.prompts[0]), len(item.prompts[0]) + len(item.choices[0]) - 1
    return list(range(1, prompt - 1)) if stage == "prefill" else list(range(max(1, prompt - 1), whole))


def dense_states(model: BlockModel, item: Item) -> list[torch.Tensor]:
    """The dense model's hidden states `[T, D]` in front of each block, and behind the last one."""
    with torch.inference_mode():
        ids = torch.tensor([[*item.prompts[0], *item.choices[0][:-1]]])
        recording = model.record(ids)
        states = [recording.hidden_BTD]
        for block in range(model.block_count):
            states.append(model.run(block, states[-1], recording.calls))
    return [state[0] for state in states]


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows in the order of their first number: a walk groups texts by length."""
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("stage", ["prefill", "decode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_model_is_shown_in_front_of_each_layer_and_behind_its_gap(family: str, stage: Stage) -> None:
    model = tiny_model(family)
    dense = {item: dense_states(model, item) for item in texts()}
    for layer in walk(walked(model, CUT), stage):
        depth = layer.gone.stop
        for wanted, name in ((layer.layer.block, "dense_before_ND"), (depth, "wanted_ND")):
            shown = torch.cat([getattr(tokens, name) for tokens in layer.tokens()])
            rows = torch.cat([dense[item][wanted][tokens_of(stage, item)] for item in texts()])
            torch.testing.assert_close(sorted_rows(shown), sorted_rows(rows), rtol=1e-4, atol=1e-4)


def test_gaps_reach_up_to_the_next_layer_that_runs_or_to_the_end() -> None:
    model = tiny_llama()
    gaps = {stage: {layer.layer.block: list(layer.gone) for layer in walk(walked(model, CUT), stage)} for stage in STAGES}
    assert gaps["decode"] == {0: [1], 2: [3], 4: [], 5: []}
    assert gaps["prefill"] == {0: [], 1: [], 2: [3], 4: [], 5: []}
    last = Plan.unified(Removal([Drop(0), Drop(5)]))
    assert {layer.layer.block: list(layer.gone) for layer in walk(walked(model, last), "decode")} == {
        1: [],
        2: [],
        3: [],
        4: [5],
    }


STAGES: tuple[Stage, ...] = ("prefill", "decode")


@pytest.mark.parametrize("name", PLANS)
def test_what_a_stage_has_behind_its_last_layer_is_what_two_phases_compute(name: str) -> None:
    model, plan = tiny_llama(), PLANS[name]
    modules = replacements(model)
    pair = walked(model, plan, modules)
    last = None
    for layer in walk(pair, "decode"):
        last = torch.cat([tokens.after_ND for tokens in layer.tokens()])
    assert last is not None
    seen: list[torch.Tensor] = []
    hook = model.model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    rows = []
    try:
        for item in texts():
            seen.clear()
            TwoPhaseModel(model, plan, modules).continuation_logits(item.prompts[0], item.choices[0])
            decoded = torch.cat([states[-1:] for states in seen])[-len(item.choices[0]) :]
            # The first token of a text is never shown; where both stages are one model all others are.
            rows.append(decoded if len(item.prompts[0]) > 1 else decoded[1:])
    finally:
        hook.remove()
    shown, expected = sorted_rows(last), sorted_rows(torch.cat(rows))
    if pair.unified:
        gaps = torch.cdist(expected, shown, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        assert len(shown) > len(expected)
    else:
        gaps = (shown - expected).abs().amax(dim=1)
    assert float(gaps.max()) < 1e-3


def test_a_layer_that_is_changed_is_seen_by_those_behind_it_and_by_both_stages_of_one_model() -> None:
    model, plan = tiny_llama(), Plan.unified(Removal([Drop(2)]))
    pair = walked(model, plan)
    for layer in walk(pair, "decode"):
        if layer.layer.block == 1:
            before = torch.cat([tokens.after_ND for tokens in layer.tokens()])
            layer.change({"mlp.down_proj.weight": torch.zeros_like(layer.module.get_parameter("mlp.down_proj.weight"))})
            after = torch.cat([tokens.after_ND for tokens in layer.tokens()])
            made = torch.cat([tokens.made_ND for tokens in layer.tokens()])
            assert float(made.abs().max()) == 0 < float((before - after).abs().max())
        if layer.layer.block == 3:
            assert torch.equal(torch.cat([tokens.before_ND for tokens in layer.tokens()]), after)
    layer_1 = pair.layers("decode")[1]
    assert {LayerOf.at(plan, stage, layer_1) for stage in STAGES} == {key for key in pair.modules if isinstance(key, LayerOf)}
    assert pair.module("prefill", layer_1) is pair.module("decode", layer_1) is not model.blocks[1]


def test_what_the_last_projection_makes_is_part_of_what_the_layer_adds() -> None:
    model = tiny_llama()
    for layer in walk(walked(model, CUT), "decode"):
        for tokens in layer.tokens():
            assert tokens.made_ND.shape == tokens.after_ND.shape
            with torch.inference_mode():
                block: Any = model.blocks[layer.layer.block]
                attended = tokens.after_ND - tokens.made_ND
                torch.testing.assert_close(
                    block.mlp(block.post_attention_layernorm(attended)), tokens.made_ND, rtol=1e-4, atol=1e-4
                )
    kv_only = [layer for layer in walk(walked(model, CUT), "prefill") if not layer.layer.runs]
    assert [layer.layer.block for layer in kv_only] == [5]


def test_merged_and_shadowed_layers_are_walked_in_both_stages() -> None:
    model = tiny_llama()
    for merge in (MERGE, FROZEN, THREE):
        plan = Plan(Removal(), Removal([merge]))
        pair = walked(model, plan, replacements(model))
        for stage in STAGES:
            states = [layer.layer.state for layer in walk(pair, stage)]
            assert states == [layer.state for layer in plan.layers(stage, BLOCKS)]
