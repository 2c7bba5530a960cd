"""What long recoveries keep in a run's folder: until all of them are written, and not where a run begins anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PluginHost
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.recover import WORK
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_plugins.recoveries import Distill, Fold
from pdtrim_plugins.recoveries.training import Training
from tests.unit.pipeline.runs import DATA

DISTILL = {"use": "distill", "steps": 6, "batch": 4, "lr": 5e-3, "check_every": 2, "save_every": 2}
STEP = Training._step


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginHost:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_host()


def recipe(host: PluginHost, folder: Path, *recoveries: Any) -> Recipe:
    small = {"recovery_data": {"prompt_tokens": 8, "answer_tokens": 8}, "searcher": {"use": "random", "tries": 1}}
    data = {**DATA, **small, "prune": {"blocks": 1, "merges": False}, "recovery": list(recoveries)}
    return Recipe.from_data(data, where="x.toml", out=folder, host=host)


def count_steps(monkeypatch: pytest.MonkeyPatch, *, stop: int | None = None) -> list[int]:
    """The steps that trainings make from now on; the user presses Ctrl-C in front of one."""
    steps: list[int] = []

    def counted(training: Training, step: int) -> float:
        if step == stop:
            raise KeyboardInterrupt
        steps.append(step)
        return STEP(training, step)

    monkeypatch.setattr(Training, "_step", counted)
    return steps


def test_a_run_that_was_interrupted_in_a_training_goes_on_with_it_and_clears_up(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, folder = recipe(host, tmp_path / "run", DISTILL), tmp_path / "run"
    count_steps(monkeypatch, stop=5)
    with pytest.raises(KeyboardInterrupt):
        run(made, host)
    assert [file.name for file in (folder / WORK).rglob("*.safetensors")] == ["training.safetensors"]
    steps = count_steps(monkeypatch)
    outcome = run(made, host)
    assert steps == [4, 5]
    (result,) = outcome.recovery
    assert result.kept
    assert len(result.losses) == 6
    assert result.tokens == 24 * 16
    assert not (folder / WORK).exists()


def test_a_training_that_has_ended_is_kept_until_the_recoveries_behind_it_have_too(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(host, tmp_path / "run", DISTILL, {"use": "fold", "tokens": 512})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fold, "recover", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(made, host)
    steps = count_steps(monkeypatch)
    run(made, host)
    assert steps == []
    assert not (tmp_path / "run" / WORK).exists()


def test_a_run_that_begins_anew_trains_anew(host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(host, tmp_path / "run", DISTILL)
    count_steps(monkeypatch, stop=5)
    with pytest.raises(KeyboardInterrupt):
        run(made, host)
    steps = count_steps(monkeypatch)
    run(made, host, fresh=True)
    assert steps == [0, 1, 2, 3, 4, 5]


def test_no_more_texts_are_drawn_than_the_steps_need(host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Distill, "recover", lambda _self, context: seen.append(len(context.texts)))
    run(recipe(host, tmp_path / "steps", DISTILL), host)
    run(recipe(host, tmp_path / "tokens", {"use": "distill", "tokens": 640}), host)
    assert seen == [24, 40]
