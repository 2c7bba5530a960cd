"""`run(progress=...)` tells a function what a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PdtrimError, Recipe, run
from pdtrim_core.pipeline.steps import steps_of
from pdtrim_core.testing.contracts.small_run import tiny_host
from tests.unit.pipeline.runs import DATA

NO_SEARCH = {key: value for key, value in DATA.items() if key != "searcher"}


def recipe(out: Path, data: dict[str, Any] = DATA, **changes: Any) -> Recipe:
    return Recipe.from_data({**data, **changes}, where="x.toml", out=out, host=tiny_host())


def test_a_function_is_given_a_line_a_step_and_each_note(tmp_path: Path) -> None:
    lines: list[str] = []
    made = recipe(tmp_path / "r", prune={"blocks": 2, "merges": False})
    outcome = run(made, progress=lines.append)
    steps = steps_of(made)
    assert lines[0] == f"run tiny:llama -> {tmp_path / 'r'}"
    assert lines[1] == f"step 1 of {len(steps)}: open the model"
    begun = [line.partition(": ")[2].partition(",")[0] for line in lines if line.startswith("step ")]
    assert begun == list(steps)
    assert any(line.startswith("search: ") and " candidates, best " in line for line in lines)
    evaluated = next(line for line in lines if line.startswith("evaluate: "))
    assert " candidates" in evaluated
    assert "best" not in evaluated  # the dense model is none to choose
    assert {f"note: {note}" for note in outcome.notes} <= set(lines)
    # It listens to that run alone.
    count = len(lines)
    run(made)
    assert len(lines) == count


def test_true_tells_stderr_and_false_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe(tmp_path / "a", prune={"blocks": 1, "merges": False}))
    assert capsys.readouterr() == ("", "")
    run(recipe(tmp_path / "b", prune={"blocks": 1, "merges": False}), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 1 of " in err


@pytest.mark.parametrize("progress", ["yes", 3, None])
def test_what_takes_no_lines_is_refused(tmp_path: Path, progress: Any) -> None:
    with pytest.raises(PdtrimError, match="progress is True, or a function that takes a line such as print"):
        run(recipe(tmp_path / "r"), progress=progress)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("data", "changes", "steps"),
    [
        (
            DATA,
            {"objective": "kl"},
            ["let the dense model answer", "score the blocks", "search", "split the stages"],
        ),
        (
            DATA,
            {"prune": {"blocks": 2, "merges": True}, "distiller": {"use": "mse", "train": "after-search"}},
            ["score the blocks", "measure the dense model", "search", "merge the chosen pairs", "split the stages"],
        ),
        (
            DATA,
            {"prune": {"blocks": 2, "merges": True}},
            ["score the blocks", "merge pairs", "measure the dense model", "search"],
        ),
        (DATA, {"recovery": "fold", "formats": {"decode": "W8A16"}}, ["recover", "quantise", "evaluate", "write"]),
        (DATA, {"recovery": "fold", "search": {"recovered": True}}, ["estimate recovery"]),
        (NO_SEARCH, {"pruner": "shortgpt"}, ["prune", "measure the dense model", "split the stages", "evaluate"]),
        (DATA, {"evaluation": {"fidelity": True}}, ["fidelity"]),
    ],
)
def test_the_steps_of_a_recipe_are_known(tmp_path: Path, data: dict[str, Any], changes: dict[str, Any], steps: list[str]) -> None:
    found = steps_of(recipe(tmp_path / "r", data, **changes))
    assert found[:2] == ("open the model", "calibrate")
    assert found[-1] == "write"
    assert [step for step in found if step in steps] == steps
    assert [step for step in found if step.startswith("merge")] == [step for step in steps if step.startswith("merge")]


def test_a_model_that_is_replaced_has_nothing_to_split(tmp_path: Path) -> None:
    found = steps_of(recipe(tmp_path / "r", NO_SEARCH, pruner="slicegpt"))
    assert "split the stages" not in found
    assert "search" not in found
