"""Whole runs on a model whose weights stay on the disk: the same results as in memory, and few readings of each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, Plan, Removal
from pdtrim_core.api.recovery_context import RecoveryContext
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.execution.look_ahead import LookAhead
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.walked import Walked
from pdtrim_core.model import waiting_states
from pdtrim_core.pipeline import objective_value, pipeline
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.search.stopping import Stop
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.model_sources import FolderModel
from pdtrim_plugins.objectives import Divergence, Margin
from pdtrim_plugins.recoveries import Fold
from pdtrim_plugins.scorers import Cosine
from tests.pretend_accelerator import PretendAccelerator
from tests.unit.execution.test_staged_model import some_items
from tests.unit.pipeline.runs import DATA

if TYPE_CHECKING:
    from pdtrim_core import PluginHost
    from pdtrim_core.api import BlockModel, Item, LoadedModel, Objective, Reading, Staged

RECIPE: dict[str, Any] = {
    **DATA,
    "evaluation": {"threads": 1, "batch_tokens": 64},
    "recovery_data": {"sources": ["calibration"], "prompt_tokens": 8, "answer_tokens": 8},
}
KL = {"use": "kl", "along": "right"}
RECOVERIES = [
    {"use": "exact-first-token", "tokens": 400, "optional": True},
    {"use": "fold", "tokens": 400, "stage": "prefill", "optional": True},
    {"use": "kv-refit", "tokens": 400, "optional": True},
    {"use": "fold", "tokens": 400, "stage": "decode", "optional": True},
]
RUNS: dict[str, dict[str, Any]] = {
    "greedy, folded and exported": {
        "searcher": "greedy",
        "objective": KL,
        "recovery": RECOVERIES,
        "exporter": ["plan", "checkpoints"],
    },
    "annealing with merges": {"prune": {"blocks": 2, "merges": True, "merge_threshold": {"quantile": 0.5}}},
    "sequential": {"searcher": "sequential", "objective": "accuracy"},
    "shortgpt": {"pruner": "shortgpt"},
    "shortgpt, padded": {"pruner": {"use": "shortgpt", "padding": "counted", "last_block": "behind-norm"}},
    "streamline": {"pruner": "streamline"},
    "flap": {"pruner": {"use": "flap", "tokens": 16}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model(folder: Path, host: PluginHost) -> BlockModel:
    return open_model(FolderModel(path=str(folder), placement="stream"), host)


def size_of(model: BlockModel) -> int:
    return sum(weight.nbytes for block in model.blocks for weight in block.parameters())


def read(model: BlockModel) -> int:
    assert model.on_disk is not None
    return model.on_disk.bytes_read


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_what_it_gives_with_the_weights_in_memory(
    name: str, folder: Path, host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [made_by(RUNS[name], placement, folder, tmp_path / placement, host, monkeypatch) for placement in ("cpu", "stream")]
    assert_alike(*found)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_what_it_gives_with_the_weights_on_an_accelerator(
    name: str, folder: Path, host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, opened, accelerator = [], FolderModel.open, PretendAccelerator()

    def all_there(source: FolderModel) -> LoadedModel:
        loaded = opened(source)
        return replace(loaded, model=accelerator.put(loaded.model, "model.layers"))

    for placement, opening in (("cpu", all_there), ("stream", opened)):
        monkeypatch.setattr(FolderModel, "open", opening)
        with accelerator:
            found.append(made_by(RUNS[name], placement, folder, tmp_path / placement, host, monkeypatch))
    assert_alike(*found)


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("greedy, folded and exported", {"lazy": 3000, "cpu": 0}),
        ("greedy, folded and exported", {"lazy": 0, "cpu": 3000}),
        ("annealing with merges", {"lazy": 3000, "cpu": 3000}),
        ("flap", {"lazy": 3000, "cpu": 0}),
    ],
)
def test_hidden_states_that_find_no_room_wait_elsewhere(  # noqa: PLR0917 - fixtures
    name: str, room: dict[str, int], folder: Path, host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at in ("with room", "without"):
        with PretendAccelerator():
            found.append(made_by(RUNS[name], "stream", folder, tmp_path / at, host, monkeypatch))
        monkeypatch.setattr(waiting_states, "free_memory", lambda place: 2 * room[torch.device(place).type])
    assert_alike(*found)


@pytest.mark.parametrize(("searcher", "alpha"), [("annealing", 0.9), ("joint", 0.97)])
def test_steps_of_a_walk_are_measured_together_where_reading_is_what_takes_long(
    searcher: str, alpha: float, host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path / "deep", num_hidden_layers=12)
    found, readings, carry_out = [], list[int](), LookAhead.carry_out

    def counted(ahead: LookAhead) -> None:
        readings[-1] += bool(ahead._wanted)
        carry_out(ahead)

    monkeypatch.setattr(LookAhead, "carry_out", counted)
    more = {"searcher": {"use": searcher, "t0": 1.0, "alpha": alpha}, "objective": KL, "recovery": "none"}
    for ahead in (0, 7):
        monkeypatch.setattr(objective_value, "AHEAD", ahead)
        readings.append(0)
        with PretendAccelerator():
            found.append(made_by(more, "stream", folder, tmp_path / str(ahead), host, monkeypatch))
    assert_alike(*found)
    assert readings[1] < 0.6 * readings[0]


def made_by(  # noqa: PLR0917 - fixtures
    more: dict[str, Any], placement: str, folder: Path, at: Path, host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> tuple[tuple[Any, ...], dict[str, bytes]]:
    """What a run finds, and the files that it writes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(at / "cache"))
    data = {**RECIPE, **more, "model": {"path": str(folder), "placement": placement}}
    data = {key: value for key, value in data.items() if not ("pruner" in data and key == "searcher")}
    outcome = pipeline.run(Recipe.from_data(data, where="x.toml", out=at / "run", host=host), host)
    files = {
        file.relative_to(at).as_posix(): file.read_bytes()
        for file in sorted((at / "run").rglob("*"))
        if file.suffix == ".safetensors" or file.name in ("plan.json", "scores.json")
    }
    recoveries = [(result.name, result.before, result.after, result.kept) for result in outcome.recovery]
    return (outcome.environment.device, outcome.rows, outcome.search, recoveries), files


def assert_alike(one: tuple[tuple[Any, ...], dict[str, bytes]], other: tuple[tuple[Any, ...], dict[str, bytes]]) -> None:
    assert one[0] == other[0]
    assert list(one[1]) == list(other[1])
    assert [name for name, content in one[1].items() if content != other[1][name]] == []


def test_scores_read_each_block_once(model: BlockModel) -> None:
    before = read(model)
    Cosine().score(ScoreContext(model, [[1, 2, 3, 4]] * 9, batch_tokens=8))
    assert read(model) - before == size_of(model)


@pytest.mark.parametrize("objective", [Margin(), Divergence(along="right")])
def test_many_plans_are_measured_in_one_reading(model: BlockModel, folder: Path, host: PluginHost, objective: Objective) -> None:
    items = [item for item in some_items() if len(item.choices) > 1]
    plans = [Plan.unified(Removal([Drop(block)])) for block in range(1, 5)]
    before = read(model)
    found = [measured(one, objective, items, plans) for one in (model, open_model(FolderModel(path=str(folder)), host))]
    assert found[0] == found[1]
    head = model.model.get_output_embeddings().weight.nbytes
    assert read(model) - before <= size_of(model) + head


class Large(Margin):
    """Finds too little memory for more than a few items at once."""

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        if len(items) > 2:
            raise torch.OutOfMemoryError
        return super().item_values(staged, items)


def test_memory_that_runs_out_makes_smaller_batches(model: BlockModel, folder: Path, host: PluginHost) -> None:
    items = [item for item in some_items() if len(item.choices) > 1]
    plans = [Plan.unified(Removal([Drop(block)])) for block in range(1, 5)]
    found = [measured(one, Large(), items, plans) for one in (model, open_model(FolderModel(path=str(folder)), host))]
    assert found[0] == found[1]


def measured(model: BlockModel, objective: Objective, items: list[Item], plans: list[Plan]) -> dict[Plan, Reading]:
    cache, known = PrefixCache(model, ExecutionOptions(batch_tokens=32)), dict[Any, float]()
    assert len(cache.groups(items)) > 1
    measurement = Measurement(lambda: cache, ObjectiveOnItems(objective, items, "objective"), known=lambda _: known)
    return dict(measurement.together(plans, Stop(), {}))


def test_a_fold_reads_each_block_once_and_those_that_it_changes_again(model: BlockModel) -> None:
    plan = Plan.unified(Removal([Drop(2), Drop(3)]))
    pair = Walked(model, plan, {}, some_items(), batch_tokens=16)
    before = read(model)
    Fold(tokens=64, ridge=10.0).recover(RecoveryContext(pair, [], Random(0), Path()))
    assert pair.modules
    # Blocks 0 to 3, block 1 once more for the stage, and nothing behind them.
    assert read(model) - before <= 5 * size_of(model) / model.block_count
