from __future__ import annotations

import json
from typing import Any

import pytest

from pdtrim_core.errors import PlanError
from pdtrim_core.plan.elements import Drop, Removal
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan

PLAN = Plan(decode=Removal([Drop(2)]))
FORMATS = Formats("rtn", None, "W4A16", "abc")


def saved(**more: Any) -> SavedPlan:
    return SavedPlan(PLAN, "tiny", "f" * 64, 6, **more)


def test_formats_are_part_of_a_plan_and_of_its_hash() -> None:
    plan = saved(formats=FORMATS)
    assert SavedPlan.from_json(plan.to_json()) == plan
    assert plan.to_data()["format"] == 3
    assert plan.digest != saved().digest
    assert plan.digest != saved(formats=Formats("rtn", None, "W4A16", "abd")).digest


def test_a_plan_with_recovered_weights_and_formats_has_both() -> None:
    plan = saved(recovered="123", formats=FORMATS)
    assert SavedPlan.from_json(plan.to_json()) == plan


def test_plans_of_earlier_formats_are_written_and_read_as_before() -> None:
    for plan, number in ((saved(), 1), (saved(recovered="123"), 2)):
        assert plan.to_data()["format"] == number
        assert "formats" not in plan.to_data()
        assert SavedPlan.from_json(plan.to_json()) == plan


def test_formats_are_told_in_words() -> None:
    assert str(FORMATS) == "decode W4A16 by rtn"
    assert str(Formats("rtn", "W8A8", "W4A16", "abc")) == "prefill W8A8, decode W4A16 by rtn"
    assert (FORMATS.of("decode"), FORMATS.of("prefill")) == ("W4A16", None)


@pytest.mark.parametrize(
    "formats",
    [
        None,
        [],
        "W4A16",
        {},
        {"quantizer": "rtn"},
        {**FORMATS.to_data(), "decode": 4},
        {"decode": "W4A16"},
        {**FORMATS.to_data(), "decode": None},
    ],
)
def test_what_is_no_formats_is_no_plan(formats: Any) -> None:
    data = {**saved(formats=FORMATS).to_data(), "formats": formats}
    with pytest.raises(PlanError, match=r"plan\.json"):
        SavedPlan.from_json(json.dumps(data))


def test_a_plan_of_a_later_format_is_refused_with_the_one_that_is_read() -> None:
    with pytest.raises(PlanError, match="it has plan format 7, this version reads 6"):
        SavedPlan.from_data({**saved().to_data(), "format": 7})
