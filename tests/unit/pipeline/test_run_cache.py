"""Runs that share: each thing is made from what its key says, and a run gives the same alone and among others."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Recipe, RunCache
from pdtrim_core.api import BlockModel, Item
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.pipeline import measured_model, pipeline
from pdtrim_core.pipeline.measurements import Bench
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.contracts.small_run import tiny_host

pytestmark = pytest.mark.numeric

HOST = tiny_host()
DATA: dict[str, Any] = {
    "model": {"path": "tiny:llama"},
    "recovery": "none",
    "prune": {"blocks": 2, "merges": False},
    "calibration": {"samples": 8, "held_out": 4},
    "searcher": {"use": "annealing", "t_min": 5.0},
    "objective": "margin",
    "evaluation": {"threads": 1, "fidelity": False},
}
QUICK_MERGES = {"use": "mse", "lr": 1e-2, "tokens": 512}


class Thing:
    """Something that can be let go."""


def recipe(out: Path = Path("r"), **changes: Any) -> Recipe:
    return Recipe.from_data({**DATA, **changes}, where="r.toml", out=out, host=HOST)


def test_a_thing_is_made_once_for_a_key() -> None:
    shared, made = RunCache(), []
    things = [shared.latest("model", ("a",), lambda: made.append(1) or Thing()) for _ in range(2)]  # type: ignore[func-returns-value]
    assert things[0] is things[1]
    assert len(made) == 1


@pytest.fixture
def _no_collection() -> Iterator[None]:
    """What refers to itself stays; a first import, which leaves such things behind, is over."""
    tiny_llama()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collection")
def test_the_hidden_states_of_a_run_are_gone_when_the_next_one_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are gigabytes, and a sweep over seeds has others in each run."""
    alive: weakref.WeakSet[PrefixCache] = weakref.WeakSet()
    most = 0

    class Counted(PrefixCache):
        def __init__(self, *args: Any, **options: Any) -> None:
            nonlocal most
            super().__init__(*args, **options)
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(measured_model, "PrefixCache", Counted)
    shared = RunCache()
    for seed in range(3):
        pipeline.run(recipe(tmp_path / str(seed), seed=seed, objective="kl"), HOST, shared=shared)
    assert most == 1


RUNS: dict[str, dict[str, Any]] = {
    "a search": {"searcher": "greedy"},
    "kl": {"objective": "kl"},
    "recovery": {"objective": "kl", "recovery": ["fold"]},
    "fidelity": {"evaluation": {"threads": 1, "fidelity": True}},
    "channels": {"pruner": "flap", "prune": {"fraction": 0.2}},
    "another model": {"pruner": "slicegpt", "prune": {"fraction": 0.2}},
    "merges": {"prune": {"blocks": 2, "merges": True}, "distiller": QUICK_MERGES},
}


@pytest.mark.usefixtures("_no_collection")
@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_run_that_is_over_leaves_neither_models_nor_hidden_states_in_memory(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Its parts refer to each other in no circle: Python would come to those late, since it does not know what they weigh."""
    before = _heavy()
    data = {key: value for key, value in {**DATA, **changes}.items() if key != "searcher" or "pruner" not in changes}
    pipeline.run(Recipe.from_data(data, where="r.toml", out=tmp_path / "r", host=HOST), HOST)
    assert {id(each) for each in _heavy()} <= {id(each) for each in before}


def _heavy() -> list[Any]:
    """Return the models and hidden states of this process; other tests may hold some."""
    return [each for each in gc.get_objects() if issubclass(type(each), BlockModel | PrefixCache | Bench)]


@pytest.mark.usefixtures("_no_collection")
def test_the_thing_before_is_gone_when_the_next_is_made_and_so_is_what_was_made_from_it() -> None:
    shared = RunCache()
    model = weakref.ref(shared.latest("model", ("a",), Thing))
    prefix_cache = weakref.ref(shared.latest("prefix_cache", ("a", "b"), Thing))
    scores = weakref.ref(shared.latest("scores", ("other", "b"), Thing))

    def make() -> Thing:
        assert (model(), prefix_cache()) == (None, None)
        assert scores() is not None
        return Thing()

    shared.latest("model", ("c",), make)


def test_a_thing_that_could_not_be_made_is_asked_for_again() -> None:
    shared = RunCache()

    def fail() -> Thing:
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        shared.latest("model", ("a",), fail)
    assert isinstance(shared.latest("model", ("a",), Thing), Thing)


def told(folder: Path) -> dict[str, Any]:
    """Return what a run folder says, but for times and the machine's state."""
    outcome = json.loads((folder / "outcome.json").read_text())
    for key in ("seconds", "peak_memory"):
        del outcome[key]
    del outcome["recipe"]["out"], outcome["environment"]["recipe"]  # the folder, and the hash of a recipe with it
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return {"outcome": outcome, "journal": journal, "plan": (folder / "plan.json").read_text()}


SWEEP: list[dict[str, Any]] = [
    {},
    {"searcher": {"use": "annealing", "t_min": 1.0}},
    {"scorer": "dot"},
    {"prune": {"blocks": 3, "merge_threshold": {"quantile": 0.2}}, "distiller": QUICK_MERGES},
    {"prune": {"blocks": 3, "merge_threshold": {"quantile": 0.2}}, "distiller": {**QUICK_MERGES, "use": "cosine-loss"}},
    {"objective": "accuracy"},
    {"calibration": {"samples": 6, "held_out": 0}},
    {"model": {"path": "tiny:opt"}},
    {},
]


def test_a_run_gives_the_same_alone_and_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shared = RunCache()
    for number, changes in enumerate(SWEEP):
        alone, among = tmp_path / f"alone-{number}", tmp_path / f"among-{number}"
        pipeline.run(recipe(alone, **changes), HOST)
        pipeline.run(recipe(among, **changes), HOST, shared=shared)
        assert told(alone) == told(among)


def test_what_another_run_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Item] = []
    margin = HOST.find("objective", "margin").component
    measure = margin.item_values  # type: ignore[attr-defined]

    def item_values(self: object, staged: object, items: list[Item]) -> object:
        asked.extend(items)
        return measure(self, staged, items)

    monkeypatch.setattr(margin, "item_values", item_values)
    shared = RunCache()
    pipeline.run(recipe(tmp_path / "a"), HOST, shared=shared)
    first = len(asked)
    pipeline.run(recipe(tmp_path / "b"), HOST, shared=shared)
    assert first > 0
    assert len(asked) == first
    journal = (tmp_path / "b" / "journal.jsonl").read_bytes()
    pipeline.run(recipe(tmp_path / "b"), HOST)
    assert len(asked) == first  # its own journal has it all
    assert (tmp_path / "b" / "journal.jsonl").read_bytes() == journal
