"""Runs that are begun and not carried out, so that a test can ask one of their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.api import BlockModel
from pdtrim_core.data.items import Calibration
from pdtrim_core.pipeline.measured_model import ModuleSet
from pdtrim_core.pipeline.measurements import Bench
from pdtrim_core.pipeline.run_context import RunContext, open_run_context
from pdtrim_core.pipeline.run_inputs import RunInputs, prepare
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Environment
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_plugins.objectives import Margin

Begin = Callable[..., RunContext]
"""Opens the folder of a run by its name; the keywords are changes of the recipe."""
DATA: dict[str, Any] = {
    "model": {"path": "tiny:llama"},
    "recovery": "none",
    "prune": {"blocks": 2},
    "calibration": {"samples": 6, "held_out": 3},
    "searcher": {"use": "random", "tries": 3},
    "distiller": {"use": "mse", "lr": 1e-2, "tokens": 512, "epochs": 2},
    "objective": "margin",
    "evaluation": {"threads": 1, "fidelity": False},
}

NOTHING = ModuleSet({}, "")


@contextmanager
def beginning(folder: Path) -> Iterator[Begin]:
    """Give a function that begins runs under a folder; all of them end with this context."""
    with ExitStack() as opened:

        def begin(name: str = "run", *, fresh: bool = False, **changes: Any) -> RunContext:
            host = tiny_host()
            data = {key: value for key, value in {**DATA, **changes}.items() if value is not None}
            recipe = Recipe.from_data(data, where="x.toml", out=folder / name, host=host)
            return opened.enter_context(open_run_context(recipe, host, fresh=fresh))

        yield begin


def inputs_of(model: BlockModel, *, blocks: int = 1, calibration: Calibration | None = None) -> RunInputs:
    """Return what a run on a model works on; no items, unless some are given."""
    environment = Environment({}, "a machine", 1, "cpu", model.fingerprint, "data", "recipe")
    return RunInputs(model, calibration or Calibration((), (), ""), blocks, environment)


def bench_of(context: RunContext, module_set: ModuleSet = NOTHING) -> tuple[Bench, RunInputs]:
    """Return the bench of a run that is begun, and what the run works on."""
    inputs = prepare(context)
    return Bench(context, inputs, module_set), inputs


def flattered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every removal count as a gain, more of one on every other item."""

    def item_values(_self: Margin, staged: Any, items: Sequence[Any]) -> list[float]:
        return [len(staged.plan.decode) * (0.1 + 0.01 * (len(item.name) % 2)) + 0.2 for item in items]

    monkeypatch.setattr(Margin, "item_values", item_values)
