"""When a finished run is kept as it is; from the outside it is tested in tests/e2e/test_finished.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdtrim_core import Recipe
from pdtrim_core.api import hookimpl
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.kept_outcome import kept_outcome, made_from, written_files
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_core.testing.models import save_tiny_model
from tests.unit.pipeline.runs import DATA


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def recipe_of(checkpoint: Path, out: Path, **changes: object) -> Recipe:
    data = {**DATA, "model": str(checkpoint), "prune": {"blocks": 2, "merges": False}, **changes}
    data.pop("distiller")
    return Recipe.from_data(data, where="x.toml", out=out)


def test_run_returns_the_outcome_of_a_finished_run_and_tells_listeners_nothing(checkpoint: Path, tmp_path: Path) -> None:
    first = pipeline.run(recipe_of(checkpoint, tmp_path / "r"))
    again = recipe_of(checkpoint, tmp_path / "r")
    heard: list[str] = []

    class Listener:
        @hookimpl
        def pdtrim_step_started(self, step: str) -> None:
            heard.append(step)

    again.host.register(Listener(), Origin("listener", "tests"))
    assert pipeline.run(again) == first
    assert heard == []
    assert pipeline.run(again, fresh=True).rows == first.rows
    assert "search" in heard


def test_a_model_source_that_cannot_tell_its_files_opens_the_model_again(tmp_path: Path) -> None:
    recipe = Recipe.from_data(DATA, where="x.toml", out=tmp_path / "r", host=tiny_host())
    assert made_from(recipe) == {}
    pipeline.run(recipe)
    assert kept_outcome(recipe) is None


def test_files_that_options_name_count_alone_in_lists_and_in_folders(checkpoint: Path, tmp_path: Path) -> None:
    texts, folder = tmp_path / "texts.txt", tmp_path / "folder"
    folder.mkdir()
    (folder / "one.txt").write_text("one")
    texts.write_text("text")
    changes = {"recovery_data": {"sources": [str(texts), str(folder)]}, "recovery": "fold"}
    known = made_from(recipe_of(checkpoint, tmp_path / "r", **changes))
    assert {str(texts), str(folder / "one.txt"), str(checkpoint / "model.safetensors")} <= known.keys()


def test_what_other_commands_write_later_is_no_file_of_the_run(tmp_path: Path) -> None:
    for name in (
        "plan.json",
        "merges/1.safetensors",
        "evaluations/a.json",
        "report.html",
        "state.json",
        "own/x.txt",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = written_files(tmp_path, [tmp_path / "own"])
    assert found.keys() == {"plan.json", "merges/1.safetensors", "own/x.txt"}
