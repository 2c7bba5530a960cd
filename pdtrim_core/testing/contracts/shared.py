"""What all contracts share: the checks of any component, the rule about departures, and where randomness comes from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch
from pydantic import ValidationError

from pdtrim_core.api.component import Component
from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.api.item_kinds import CalibrationSource, Objective
from pdtrim_core.api.kinds import options_of
from pdtrim_core.api.kv_selector import KvSelector
from pdtrim_core.api.layer_kinds import Quantizer, Recovery
from pdtrim_core.api.model_source import ModelSource
from pdtrim_core.api.plan_kinds import Distiller, Pruner, Scorer, Searcher, StageSplitter
from pdtrim_core.api.writer_kinds import Exporter, Report
from pdtrim_core.errors import did_you_mean
from pdtrim_core.host.host import Origin, PluginHost

C = TypeVar("C", bound=type)

SILENT = 2
"""The block that is planted to be of no use."""
TOLERANCE = 1e-4
"""Relative: float32 sums of a few hundred tokens in another order differ by about 1e-6."""


def check_component(component: type[Component], kind: type[Component], options: dict[str, Any]) -> None:
    """Check what a recipe, the listings and the record of a run need of any component."""
    host = PluginHost()
    registry = next(hook for hook, of in _HOOKS.items() if of is kind)
    host.register(SimpleNamespace(**{registry: hookimpl(lambda: [component])}), Origin("contract", "contract"))
    assert not host.failures, host.failures[0].problem
    assert (component.__doc__ or "").strip().splitlines(), "its docstring needs a first line: listings show it"
    for name, field in options_of(component):
        assert field.description, f"option '{name}' has no description"
        assert not field.description.endswith("."), f"the description of option '{name}' ends with a full stop"
        if not field.is_required():
            component.model_validate({**options, name: field.get_default(call_default_factory=True)})
    made = component(**options)
    assert component.model_config.get("frozen"), "a component must be frozen: it is remembered as it was"
    with pytest.raises(ValidationError, match="extra_forbidden"):
        component.model_validate({**options, "no-such-option": 1})
    assert component.model_validate(made.model_dump(mode="json")) == made, "its options do not read back from JSON"


_HOOKS: dict[str, type[Component]] = {
    "pdtrim_scorers": Scorer,
    "pdtrim_searchers": Searcher,
    "pdtrim_pruners": Pruner,
    "pdtrim_distillers": Distiller,
    "pdtrim_splitters": StageSplitter,
    "pdtrim_recoveries": Recovery,
    "pdtrim_quantizers": Quantizer,
    "pdtrim_kv_selectors": KvSelector,
    "pdtrim_objectives": Objective,
    "pdtrim_calibrations": CalibrationSource,
    "pdtrim_model_sources": ModelSource,
    "pdtrim_exporters": Exporter,
    "pdtrim_reports": Report,
}


def contract(cls: C) -> C:
    """Make each subclass of a contract give a reason for every test that it departs from."""

    def check_departures(subclass: Any) -> None:
        own = {name for name in vars(subclass) if name.startswith("test_") and hasattr(cls, name)}
        silent = sorted(own - set(subclass.departs))
        if silent:
            raise TypeError(f'{subclass.__name__} overrides {silent[0]}: say why, departs = {{"{silent[0]}": "reason"}}')
        for name, reason in subclass.departs.items():
            if not (name.startswith("test_") and hasattr(cls, name)):
                tests = [test for test in dir(cls) if test.startswith("test_")]
                raise TypeError(f"{subclass.__name__} departs from {name}, which is no test of it{did_you_mean(name, tests)}")
            if not reason.strip():
                raise TypeError(f"{subclass.__name__} departs from {name} without a reason")
            if name not in own:
                setattr(subclass, name, _skipped(reason))

    setattr(cls, "__init_subclass__", classmethod(check_departures))  # noqa: B010 - mypy forbids the plain assignment
    return cls


def _skipped(reason: str) -> Callable[[Any], None]:
    def test(self: Any) -> None:
        del self
        pytest.skip(f"departs: {reason}")

    return test


@contextmanager
def no_global_randomness() -> Iterator[None]:
    """Fail when the random state of Python or torch is another at the end than at the beginning."""
    python, of_torch = random.getstate(), torch.get_rng_state()
    yield
    assert random.getstate() == python, "the module `random` was used: take all randomness from `rng`"
    assert torch.equal(torch.get_rng_state(), of_torch), "torch's generator was used: take all randomness from `rng`"


def rng_of(seed: int) -> Random:
    """Return a generator of its own for a seed."""
    return Random(f"{seed} contract")  # noqa: S311 - reproducible draws, nothing secret
