"""What a run has spent, with what was spent before it went on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pdtrim_core import Recipe
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.events import RunEvents
from pdtrim_core.pipeline.run_context import open_run_context
from pdtrim_core.pipeline.spent import Spent
from pdtrim_core.results.run_state import RunState, read_state, write_state
from pdtrim_core.testing.contracts.small_run import tiny_host
from tests.unit.pipeline.runs import DATA


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the clocks, the last of the list."""
    now = [100.0]
    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, lambda: now[-1])
    return now


def test_what_was_spent_before_is_added(tmp_path: Path, clock: list[float]) -> None:
    write_state(tmp_path, RunState({"search": 5.0, "evaluate": 1.0}, {"measured": 7}))
    events = RunEvents(PluginHost())
    spent = Spent(tmp_path, events)
    with events.step("search"):
        clock.append(102.0)
    spent.tally.measured += 2
    assert spent.seconds() == {"search": 7.0, "evaluate": 1.0}
    assert spent.candidates() == {"measured": 9, "remembered": 0, "cut_short": 0}
    spent.forget_before()
    assert spent.seconds() == {"search": 2.0}
    assert spent.candidates()["measured"] == 2


def test_a_step_that_was_cut_counts_as_far_as_it_came(tmp_path: Path, clock: list[float]) -> None:
    events = RunEvents(PluginHost())
    spent = Spent(tmp_path, events)
    events.saved = spent.save
    with events.step("merge pairs"):
        clock.append(104.0)
        spent.save()
        clock.append(105.0)
        spent.save()  # too soon to write again
        assert read_state(tmp_path).seconds == {"merge pairs": 4.0}


def test_a_run_that_begins_again_is_not_finished_any_more(tmp_path: Path) -> None:
    write_state(tmp_path, RunState({}, {}, {"code": "1"}, {"plan.json": "1 2"}))
    spent = Spent(tmp_path, RunEvents(PluginHost()))
    spent.save()
    assert read_state(tmp_path).made_from == {}
    spent.end(made_from={"code": "2"}, files={"plan.json": "3 4"})
    assert read_state(tmp_path) == RunState(spent.seconds(), spent.candidates(), {"code": "2"}, {"plan.json": "3 4"})


def test_a_run_that_stops_in_a_step_keeps_its_time(tmp_path: Path) -> None:
    host = tiny_host()
    recipe = Recipe.from_data(DATA, where="x.toml", out=tmp_path / "r", host=host)

    def stopped() -> None:
        with open_run_context(recipe, host) as context, context.events.step("search"):
            context.spent.tally.measured = 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    state = read_state(recipe.out)
    assert state.seconds["search"] > 0
    assert state.candidates["measured"] == 3
