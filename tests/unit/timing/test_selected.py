from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from pdtrim_core.api import Drop, PdtrimError, Plan, Removal
from pdtrim_core.host.host import load_plugins
from pdtrim_core.plan.selections import FirstOnly
from pdtrim_core.testing.contracts.small_run import small_run
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_core.timing.subjects import BlocksToRemove, subjects_of_run, subjects_of_shape


class Run:
    """As much of a run as is looked at before its refusal."""

    def __init__(self) -> None:
        outcome, self.dense = small_run()
        saved = replace(outcome.plan, plan=Plan(selections=(FirstOnly(1),)))
        self.outcome = replace(outcome, saved_plan=saved.to_data())
        self.replaced, self.path = None, Path("runs/selected")


def test_a_pair_that_reads_some_of_a_prompt_is_not_timed_as_if_it_read_all() -> None:
    with pytest.raises(PdtrimError, match="runs/selected: decode reads only some of a prompt's K/V"):
        subjects_of_run(cast("Any", Run()))


def test_a_plan_on_a_published_shape_is_not_either(tmp_path: Path) -> None:
    outcome, _ = small_run()
    plan = tmp_path / "plan.json"
    saved = replace(outcome.plan, plan=Plan(decode=Removal([Drop(2)]), selections=(FirstOnly(1),)))
    plan.write_text(saved.to_json())
    with pytest.raises(PdtrimError, match=r"plan.json: decode reads only some of a prompt's K/V"):
        subjects_of_shape(str(save_tiny_model(tmp_path / "tiny")), BlocksToRemove(plan=plan), load_plugins())
