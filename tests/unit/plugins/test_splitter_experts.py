"""The splitter of experts: which ones prefill keeps, by what it looks at, and what an export makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from pdtrim_core.api import BlockModel, CostModel, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.api.routed_tokens import look_at_routers
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.search.driver import Note
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.splitters import Experts
from tests.unit.mixtures import EXPERTS, GROUPED, SHAPES, experts_of, mixture
from tests.unit.plugins.exported import export, read_back

PROMPTS = [tuple((7 * row + 13 * place) % 250 for place in range(10 + row)) for row in range(4)]


def costs_of(model: BlockModel) -> CostModel:
    def look(function: Callable[[Any], None]) -> None:
        look_at_routers(ScoreContext(model, PROMPTS), [range(len(prompt) - 1) for prompt in PROMPTS], function)

    return CostModel(model.block_count, model.sizes, look_at_prompts=look)


def split(splitter: Experts, decode: Removal, costs: CostModel, value: Callable[[Plan], float]) -> tuple[Plan, list[Plan]]:
    """Return the plan of a splitter and all that it requested, where a plan has the value that a function says."""
    requests, asked, answer = splitter.split(Plan.unified(decode), costs, Random(0)), list[Plan](), None
    while True:
        try:
            request: Any = requests.send(answer)
        except StopIteration as end:
            return end.value, asked
        if isinstance(request, Note):
            answer = None
            continue
        plans = request if isinstance(request, list) else [request]
        asked += plans
        answer = [value(plan) for plan in plans] if isinstance(request, list) else value(request)


def gone(plan: Plan) -> int:
    return sum(len(element.units) for element in plan.prefill if isinstance(element, Shrink))


@pytest.mark.parametrize("family", SHAPES)
def test_prefill_loses_the_share_that_costs_no_more_than_it_may(family: str) -> None:
    model = mixture(family)
    decode = Removal(Shrink(block, "experts", (0, 2, 5, 7)) for block in experts_of(model))
    # A point for each expert of each block that prefill loses.
    blocks = len(experts_of(model))
    for loss, lost in ((0.0, 0), (1.0, 1), (2.5, 2), (100.0, 4)):
        plan, asked = split(Experts(loss=loss), decode, costs_of(model), lambda plan: 100 - gone(plan) / blocks)
        assert plan.decode == decode
        assert [gone(one) for one in asked] == [blocks * count for count in range(5)]
        assert [len(element.units) for element in plan.prefill if isinstance(element, Shrink)] == [lost] * blocks * bool(lost)
        assert all({*element.units} <= {0, 2, 5, 7} for element in plan.prefill if isinstance(element, Shrink))


@pytest.mark.parametrize("by", ["reap", "frequency"])
def test_the_first_to_go_is_the_one_that_prompts_go_to_least(by: Any) -> None:
    model = mixture("mixtral")
    counts = {block: [0] * EXPERTS for block in experts_of(model)}

    def count(seen: Any) -> None:
        for expert in seen.chosen_NK.flatten().tolist():
            counts[seen.block][expert] += 1

    costs = costs_of(model)
    assert costs.look_at_prompts is not None
    costs.look_at_prompts(count)
    assert sum(map(sum, counts.values())) == 2 * model.block_count * sum(len(prompt) - 1 for prompt in PROMPTS)
    decode = Removal(Shrink(block, "experts", (0, 2, 5, 7)) for block in range(model.block_count))
    plan, _ = split(Experts(loss=1, by=by), decode, costs, lambda plan: 100 - gone(plan) / model.block_count)
    if by == "frequency":
        for element in plan.prefill:
            assert isinstance(element, Shrink)
            rated = counts[element.block]
            assert element.units == (min((0, 2, 5, 7), key=lambda expert: (rated[expert], expert)),)


def test_groups_stay_alike() -> None:
    model = mixture("deepseek_v3", **GROUPED)
    decode = Removal(Shrink(block, "experts", (0, 1, 4, 5, 8, 9, 12, 13)) for block in experts_of(model))
    plan, _ = split(Experts(shares=2), decode, costs_of(model), lambda plan: 100 - (gone(plan) > 4 * len(experts_of(model))) * 9)
    for element in plan.prefill:
        assert isinstance(element, Shrink)
        assert sorted(expert // 4 for expert in element.units) == [0, 1, 2, 3]
    assert len(plan.prefill) == len(experts_of(model))


def test_without_experts_prefill_loses_nothing_and_without_a_look_it_says_so() -> None:
    model = mixture("mixtral")
    decode = Removal([Shrink(1, "experts", (0,))])
    with pytest.raises(PdtrimError, match="was not shown what routers choose"):
        split(Experts(), decode, CostModel(model.block_count, model.sizes), lambda _: 0)
    heads = Removal([Shrink(1, "attention", (0,))])
    plan, asked = split(Experts(), heads, costs_of(model), lambda _: 0)
    assert plan == Plan(decode=heads)
    assert asked == [plan]


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_a_prefill_of_its_own_is_exported_and_hands_its_kv_over(family: str, uniform: bool, tmp_path: Path) -> None:
    model = mixture(family)
    blocks = list(experts_of(model))
    decode = Removal(Shrink(block, "experts", (1, 4, 6)) for block in blocks)
    kept = blocks if uniform else blocks[:1]
    plan = Plan(prefill=Removal(Shrink(block, "experts", (4,)) for block in kept), decode=decode).truncated_prefill(
        model.block_count
    )
    written = export(Checkpoints(), model, plan, tmp_path)
    assert [path.name for path in written] == ["decode", "unified", "prefill"]
    kind = json.loads((tmp_path / "prefill" / "config.json").read_text(encoding="utf-8"))["model_type"]
    assert kind.startswith("pdtrim_")  # the last block has decode's number
    prompt = tuple(range(9))
    made = TwoPhaseModel(model, plan).generate(prompt, 5)
    prefill, second = read_back(tmp_path / "prefill"), read_back(tmp_path / "decode")
    with torch.inference_mode():
        cache = prefill(input_ids=torch.tensor([prompt[:-1]]), use_cache=True).past_key_values
        text, found = [prompt[-1]], list[int]()
        for _ in made:
            out = second(input_ids=torch.tensor([text[-1:]]), past_key_values=cache, use_cache=True)
            found.append(int(out.logits[0, -1].argmax()))
            text.append(found[-1])
    assert found == made


def test_no_prefill_is_written_where_it_has_all_experts_or_those_of_decode(tmp_path: Path) -> None:
    model = mixture("mixtral")
    decode = Removal(Shrink(block, "experts", (1,)) for block in range(model.block_count))
    for number, plan in enumerate((Plan(decode=decode), Plan.unified(decode))):
        assert [path.name for path in export(Checkpoints(), model, plan, tmp_path / str(number))] == ["decode", "unified"]
