"""Plans as JSON: the same bytes for the same plan, and a sentence for what is no plan."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import strategies as st

from pdtrim_core.errors import PlanError
from pdtrim_core.plan.elements import Drop, DropPart, Element, KvOnly, Shrink
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.plan import FirstToken, Plan
from pdtrim_core.plan.plan_file import SavedPlan, plan_from_json, plan_to_json
from pdtrim_core.plan.selections import FirstOnly
from tests.unit.examples import given
from tests.unit.plan.plans import lawful, plan

LAW = "this plan breaks the K/V law: "
NO_MODEL = "the model needs a name and a fingerprint, which are texts, and a number of blocks"


@st.composite
def saved(draw: st.DrawFn) -> SavedPlan:
    a_plan, block_count = draw(lawful())
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
    first_token: FirstToken = draw(st.sampled_from(["decode", "prefill"]))
    return SavedPlan(a_plan, draw(text), draw(text), block_count, first_token, draw(st.sampled_from(["", "abc"])))


@given(lawful())
def test_a_plan_survives_json(drawn: tuple[Plan, int]) -> None:
    assert plan_from_json(json.loads(json.dumps(plan_to_json(drawn[0])))) == drawn[0]


@given(saved())
def test_a_saved_plan_survives_json_byte_for_byte(before: SavedPlan) -> None:
    text = before.to_json()
    after = SavedPlan.from_json(text)
    assert after == before
    assert after.to_json() == before.to_json() == text


@given(saved())
def test_the_data_of_a_saved_plan_are_what_its_json_says(before: SavedPlan) -> None:
    assert before.to_data() == json.loads(before.to_json())
    assert SavedPlan.from_data(before.to_data()) == before


def test_plan_json_spells_everything_out() -> None:
    text = SavedPlan(plan([KvOnly(2)], [Drop(0), Shrink(1, "attention", (1,))]), "tiny", "abc", 3).to_json()
    assert json.loads(text) == {
        "format": 1,
        "index_base": 0,
        "model": {"name": "tiny", "fingerprint": "abc", "blocks": 3},
        "first_token": "decode",
        "prefill": [{"kind": "kv-only", "slot": 2}],
        "decode": [{"kind": "drop", "block": 0}, {"kind": "shrink", "block": 1, "part": "attention", "units": [1]}],
        "kv_map": [
            {"slot": 0, "block": 1, "source": "run", "removed_heads": [1]},
            {"slot": 1, "block": 2, "source": "kv-only", "removed_heads": []},
        ],
    }
    assert text.endswith("}\n")


def changed(**keys: Any) -> str:
    data = json.loads(SavedPlan(plan([], [Drop(1)]), "tiny", "abc", 3).to_json())
    return json.dumps({**data, **keys})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(format=7), "p.json: it has plan format 7, this version reads 6: make the plan again"),
        (changed(format=6), "p.json: plans of format 6 have blocks with fewer experts, and no earlier ones do"),
        (changed(format=5), "p.json: plans of format 5 drop parts of blocks, and no earlier ones do"),
        (changed(format=4), "p.json: plans of format 4 have selections of K/V, and no earlier ones have"),
        (changed(format=3), "p.json is not a plan: it has no 'formats'"),
        (changed(format=2), "p.json is not a plan: it has no 'recovered'"),
        (changed(format=2, recovered=5), f"p.json is not a plan: {NO_MODEL}"),
        ("{}", "p.json is not a plan: it has no 'format'"),
        ("[]", "p.json is not a plan: it is no table"),
        ('{"format": 1}', "p.json is not a plan: it has no 'model'"),
        ("plan", "p.json is not a plan: it is no JSON (Expecting value: line 1 column 1 (char 0))"),
        (changed(prefill=None), "p.json: not a plan: it needs lists called 'prefill' and 'decode'"),
        (changed(decode=[{"kind": "melt"}]), "p.json: not an element of a plan: {'kind': 'melt'}"),
        (
            changed(prefill=[{"kind": "drop", "block": 0}]),
            f"p.json: {LAW}decode runs block 0, but prefill removes it and computes no K/V for it",
        ),
    ],
    ids=str,
)
def test_what_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        SavedPlan.from_json(text, "p.json")
    assert str(caught.value) == message


@pytest.mark.parametrize("data", [{}, [], None, {"prefill": []}, {"prefill": 1, "decode": 2}], ids=str)
def test_what_is_no_pair_of_removals_is_refused(data: Any) -> None:
    with pytest.raises(PlanError) as caught:
        plan_from_json(data)
    assert str(caught.value) == "not a plan: it needs lists called 'prefill' and 'decode'"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (changed(model={"name": "tiny", "fingerprint": "abc", "blocks": "3"}), NO_MODEL),
        (changed(model={"name": "tiny", "fingerprint": "abc", "blocks": None}), NO_MODEL),
        (changed(model={"name": "tiny", "fingerprint": "abc", "blocks": True}), NO_MODEL),
        (changed(model={"name": "tiny", "fingerprint": 5, "blocks": 3}), NO_MODEL),
        (changed(model={"name": None, "fingerprint": "abc", "blocks": 3}), NO_MODEL),
        (changed(first_token="later"), "first_token is one of decode, prefill, not 'later'"),
        (changed(first_token=["decode"]), "first_token is one of decode, prefill, not ['decode']"),
    ],
)
def test_fields_of_the_wrong_sort_are_refused(text: str, problem: str) -> None:
    with pytest.raises(PlanError) as caught:
        SavedPlan.from_json(text, "p.json")
    assert str(caught.value) == f"p.json is not a plan: {problem}"


def test_a_file_whose_plan_does_not_fit_its_own_model_is_named() -> None:
    with pytest.raises(PlanError) as caught:
        SavedPlan.from_json(changed(model={"name": "tiny", "fingerprint": "abc", "blocks": 1}), "p.json")
    assert str(caught.value) == "p.json: this plan changes block 1, but the model has blocks 0 to 0"


def test_another_model_is_refused() -> None:
    saved_plan = SavedPlan(Plan(), "tiny", "a" * 64, 3)
    saved_plan.check_meets("elsewhere", "a" * 64)
    with pytest.raises(PlanError) as caught:
        saved_plan.check_meets("other", "b" * 64)
    assert str(caught.value) == (
        "this plan was made for tiny (aaaaaaaaaaaa), but other has other weights (bbbbbbbbbbbb): "
        "run the recipe again on this model"
    )


@pytest.mark.parametrize("more", [{}, {"recovered": "abc"}, {"formats": Formats("rtn", None, "W4A16", "abc")}], ids=str)
@pytest.mark.parametrize("selections", [(), (FirstOnly(1),)], ids=str)
def test_a_plan_that_drops_parts_has_a_format_of_its_own(more: dict[str, Any], selections: tuple[FirstOnly, ...]) -> None:
    a_plan = plan([DropPart(2, "mlp")], [DropPart(0, "attention"), DropPart(2, "mlp")]).selecting(selections)
    before = SavedPlan(a_plan, "tiny", "abc", 3, **more)
    assert before.to_data()["format"] == 5
    assert [source["block"] for source in before.to_data()["kv_map"]] == [1, 2]
    assert SavedPlan.from_json(before.to_json()) == before
    with pytest.raises(PlanError, match="plans of format 5 drop parts of blocks, and no earlier ones do"):
        SavedPlan.from_data({**SavedPlan(a_plan.unselected, "tiny", "abc", 3).to_data(), "format": 1})


@pytest.mark.parametrize("more", [{}, {"recovered": "abc"}, {"formats": Formats("rtn", None, "W4A16", "abc")}], ids=str)
@pytest.mark.parametrize("selections", [(), (FirstOnly(1),)], ids=str)
@pytest.mark.parametrize("parts", [[], [DropPart(0, "attention")]], ids=str)
def test_a_plan_with_fewer_experts_has_a_format_of_its_own(
    more: dict[str, Any], selections: tuple[FirstOnly, ...], parts: list[Element]
) -> None:
    a_plan = plan([Shrink(2, "experts", (1,))], [*parts, Shrink(2, "experts", (0, 3))]).selecting(selections)
    before = SavedPlan(a_plan, "tiny", "abc", 3, **more)
    assert before.to_data()["format"] == 6
    assert before.to_data()["prefill"] == [{"kind": "shrink", "block": 2, "part": "experts", "units": [1]}]
    assert SavedPlan.from_json(before.to_json()) == before
    with pytest.raises(PlanError, match="plans of format 6 have blocks with fewer experts, and no earlier ones do"):
        SavedPlan.from_data({**SavedPlan(plan([], [Shrink(2, "experts", (0,))]), "tiny", "abc", 3).to_data(), "format": 1})
