from __future__ import annotations

import json
from typing import Any

import pytest

from pdtrim_core.errors import PlanError
from pdtrim_core.plan.costs import BlockSizes, ModelSizes
from pdtrim_core.plan.diagram import draw_diagram
from pdtrim_core.plan.elements import Drop, DropPart, KvOnly, Merge, Removal, Shrink
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.plan import FirstTokensOf, LayerOf, Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.plan.selections import LEAST, Edges, FirstOnly, Selection, selection_from_json, selection_to_json

EDGES, FIRST = Edges(1, 0.15, 0.15), FirstOnly(4)
PLAN = Plan(Removal([KvOnly(1)]), Removal([Drop(2)]), selections=(FIRST, EDGES))


def saved(plan: Plan = PLAN, **more: Any) -> SavedPlan:
    return SavedPlan(plan, "tiny", "f" * 64, 6, **more)


@pytest.mark.parametrize(
    ("tokens", "read"),
    [(0, (0, 0)), (1, (1, 0)), (20, (16, 4)), (32, (16, 16)), (100, (16, 16)), (200, (30, 30)), (1024, (154, 154))],
)
def test_edges_are_shares_of_the_prompt_and_never_overlap(tokens: int, read: tuple[int, int]) -> None:
    assert EDGES.read(tokens) == read


def test_whole_prompts_are_read_where_both_shares_make_one() -> None:
    assert all(sum(Edges(0, 0.5, 0.5).read(tokens)) == tokens for tokens in range(2 * LEAST, 300))


def test_the_first_token_is_one_where_there_is_one() -> None:
    assert (FIRST.read(0), FIRST.read(1), FIRST.read(8192)) == ((0, 0), (1, 0), (1, 0))


@pytest.mark.parametrize(("head", "tail"), [(0, 0.3), (0.3, 0), (-0.1, 0.3), (0.6, 0.5), (float("nan"), 0.1), ("a", 0.1)])
def test_shares_that_keep_nothing_or_too_much_are_refused(head: Any, tail: Any) -> None:
    with pytest.raises(PlanError, match="each is above 0, and together they are 1 at most"):
        Edges(3, head, tail)


@pytest.mark.parametrize(
    ("decode", "selections", "message"),
    [
        ([Drop(1)], [EDGES], "K/V are selected for block 1, but decode does not run it"),
        ([Merge(0, 1)], [EDGES], "which decode merged: say block 0, where the merge 0+1 is placed"),
        ([], [EDGES, FirstOnly(1)], "K/V are selected for block 1 twice"),
        ([], [FirstOnly(-1)], "K/V are selected for block -1"),
        ([], [FirstOnly(1000)], "K/V are selected for block 1000"),
    ],
)
def test_only_layers_of_decode_have_a_selection_and_one_at_most(
    decode: list[Any], selections: list[Selection], message: str
) -> None:
    with pytest.raises(PlanError, match="this plan breaks the K/V law") as caught:
        Plan(decode=Removal(decode), selections=tuple(selections))
    assert message in str(caught.value)


def test_a_block_that_the_model_does_not_have_does_not_fit() -> None:
    with pytest.raises(PlanError, match="changes block 4, but the model has blocks 0 to 3"):
        PLAN.check_fits(4)
    with pytest.raises(PlanError, match="changes block 4"):
        SavedPlan.from_data({**saved().to_data(), "model": {"name": "", "fingerprint": "", "blocks": 4}})


def test_both_stages_layers_say_what_decode_reads_of_their_k_v() -> None:
    plan = Plan(decode=Removal([Drop(2), Merge(3, 4)]), selections=(FirstOnly(3), EDGES))
    assert {layer.block: layer.selection for layer in plan.layers("decode", 6)} == {0: None, 1: EDGES, 3: FirstOnly(3), 5: None}
    fed = {layer.kv_slot: layer.selection for layer in plan.layers("prefill", 6) if layer.kv_slot is not None}
    assert fed == {0: None, 1: EDGES, 2: FirstOnly(3), 3: None}
    assert all(layer.selection is None for layer in plan.layers("prefill", 6) if layer.kv_slot is None)


def test_selections_are_in_order_and_part_of_the_plan() -> None:
    assert PLAN.selections == (EDGES, FIRST)
    assert PLAN.unselected != PLAN
    assert PLAN.unselected == Plan(PLAN.prefill, PLAN.decode)
    assert PLAN.unselected.selecting([FIRST, EDGES]) == PLAN
    assert PLAN.truncated_prefill(6).selections == PLAN.selections
    assert Plan(selections=(FIRST,)).first_block == 4
    assert str(PLAN).endswith("prompts {1 edges 0.15+0.15, 4 first}")


def test_weights_have_the_same_names_whatever_decode_reads() -> None:
    assert LayerOf(PLAN, "decode", 1) == LayerOf(PLAN.unselected, "decode", 1)
    assert FirstTokensOf(PLAN) == FirstTokensOf(PLAN.unselected)


@pytest.mark.parametrize("selection", [EDGES, FIRST, Edges(0, 1e-9, 0.5)])
def test_a_selection_survives_json(selection: Selection) -> None:
    assert selection_from_json(json.loads(json.dumps(selection_to_json(selection)))) == selection


@pytest.mark.parametrize("more", [{}, {"recovered": "abc"}, {"formats": Formats("rtn", None, "W4A16", "abc")}])
def test_a_saved_plan_with_selections_survives_json(more: dict[str, Any]) -> None:
    before = saved(**more)
    assert before.to_data()["format"] == 4
    assert SavedPlan.from_json(before.to_json()) == before
    assert before.digest != saved(PLAN.unselected, **more).digest


@pytest.mark.parametrize(
    "selections",
    [
        None,
        [],
        [3],
        [{}],
        [{"kind": "edges"}],
        [{"kind": "edges", "block": 1, "head": True, "tail": 0.1}],
        [{"kind": "edges", "block": 1.5, "head": 0.1, "tail": 0.1}],
        [{"kind": "first-only", "block": 1, "head": 0.1}],
        [{"kind": "middle", "block": 1}],
        [{"kind": "first-only", "block": 2}],
    ],
)
def test_what_is_no_selection_is_no_plan(selections: Any) -> None:
    with pytest.raises(PlanError, match=r"plan\.json"):
        SavedPlan.from_json(json.dumps({**saved().to_data(), "selections": selections}))


def test_a_plan_of_an_older_format_has_no_selections() -> None:
    with pytest.raises(PlanError, match="plans of format 4 have selections of K/V, and no earlier ones have"):
        SavedPlan.from_data({**saved().to_data(), "format": 1})


def test_bytes_follow_the_length_of_the_prompt() -> None:
    block = BlockSizes(
        parameters=100, active=100, kv_parameters=20, kv_width=8, attention_width=8, units={"attention": (2, 10), "mlp": (4, 5)}
    )
    sizes = ModelSizes((block,) * 6, parameters=700, head=10, bytes_per_number=2)
    unselected = PLAN.unselected
    assert sizes.kv_bytes(unselected, 8192) == sizes.kv_bytes(unselected) == 5 * 8 * 2
    # Three blocks whole, one of which the ends are read, and one of which next to nothing is.
    assert sizes.kv_bytes(PLAN, 8192) == round(8 * (3 + 2458 / 8192 + 1 / 8192)) * 2
    assert sizes.kv_bytes(PLAN, 32) == round(8 * (4 + 1 / 32)) * 2
    assert sizes.step_bytes(PLAN, batch=2, context=8192) == sizes.decode_bytes(PLAN) + 2 * 8192 * sizes.kv_bytes(PLAN, 8192)
    narrow = Plan(decode=Removal([Shrink(1, "attention", (0,))]), selections=(Edges(1, 0.25, 0.25),))
    assert sizes.kv_bytes(narrow, 1000) == round(8 * (5 + 0.5 * 0.5)) * 2


def test_the_diagram_says_what_is_read() -> None:
    drawn = draw_diagram(PLAN, 6).splitlines()
    assert drawn[1:4] == ["prefill  #k####", "decode   ##.###", "prompts   e  1"]
    assert "e decode reads the ends of prompts" in drawn[-1]
    assert "prompts" not in draw_diagram(PLAN.unselected, 6)


def test_nothing_is_selected_where_decode_has_no_attention() -> None:
    with pytest.raises(PlanError, match="K/V are selected for block 1, but decode runs it without attention"):
        Plan(decode=Removal([DropPart(1, "attention")]), selections=(FirstOnly(1),))
    assert Plan(decode=Removal([DropPart(1, "mlp")]), selections=(FirstOnly(1),)).selections
