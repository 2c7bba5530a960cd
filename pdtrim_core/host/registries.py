"""What plugins offer through registries: which objects are usable components, and whose they are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pdtrim_core.api.component import Component
from pdtrim_core.api.kinds import KINDS
from pdtrim_core.host.compatibility import problem_with_methods
from pdtrim_core.host.discovery import Origin
from pdtrim_core.host.implementations import Implementation

REGISTRIES: Mapping[str, str] = MappingProxyType(
    {
        "pdtrim_scorers": "scorer",
        "pdtrim_searchers": "searcher",
        "pdtrim_pruners": "pruner",
        "pdtrim_distillers": "distiller",
        "pdtrim_splitters": "splitter",
        "pdtrim_recoveries": "recovery",
        "pdtrim_quantizers": "quantizer",
        "pdtrim_kv_selectors": "kv_selector",
        "pdtrim_objectives": "objective",
        "pdtrim_calibrations": "calibration",
        "pdtrim_model_sources": "model",
        "pdtrim_exporters": "exporter",
        "pdtrim_reports": "report",
    }
)
"""The hooks that are registries, and the kind that each is for."""
NAME = re.compile(r"[a-z][a-z0-9]*([-+][a-z0-9]+)*")


@dataclass(frozen=True)
class Provided:
    """A component class and where it comes from."""

    component: type[Component]
    origin: Origin

    @property
    def label(self) -> str:
        """How messages call it: "scorer 'norm-ratio' (pdtrim-norm 0.1.0)"."""
        return f"{self.component.kind} '{self.component.name}' ({self.origin})"


@dataclass(frozen=True)
class Failure:
    """A plugin, or one thing in it, that cannot be used, and why."""

    origin: Origin
    problem: str


@dataclass(frozen=True)
class Offer:
    """A usable component class, and the implementation of a registry that offered it."""

    component: type[Component]
    by: Implementation


@dataclass
class Offers:
    """What the plugins offer in one call of a registry."""

    kind: str
    usable: list[Offer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def take(self, by: Implementation, answer: list[Any]) -> list[Any]:
        """Note whose the classes of an answer are; return it without what cannot be used, so that no wrapper trips over it.

        A wrapper answers with a list for each plugin that it wraps: what is new in them is its own.
        """
        return [self._take(by, offered) for offered in answer] if by.wrapper else self._take(by, answer)

    def left(self, answers: list[list[Any]]) -> list[Offer]:
        """Return the offers that are still among the answers at the end, when wrappers may have taken some away."""
        return [offer for offer in self.usable if any(offer.component is left for answer in answers for left in answer)]

    def _take(self, by: Implementation, offered: list[Any]) -> list[Any]:
        new = [component for component in offered if not (by.wrapper and self._has(component))]
        problems = [(component, problem_with_component(component, self.kind)) for component in new]
        self.usable += [Offer(component, by) for component, problem in problems if problem is None]
        self.failures += [Failure(by.origin, problem) for _, problem in problems if problem is not None]
        return [component for component in offered if self._has(component)]

    def _has(self, component: object) -> bool:
        return any(offer.component is component for offer in self.usable)


def problem_with_component(component: object, kind: str) -> str | None:
    """Return why an object is no usable component of a kind."""
    wanted = KINDS[kind]
    if not (inspect.isclass(component) and issubclass(component, wanted)):
        return f"{component!r} is not a subclass of {wanted.__name__}"
    problem = problem_with_methods(component, kind)
    if problem:
        return problem
    if not (isinstance(component.name, str) and NAME.fullmatch(component.name)):
        return f"{component.__name__} has the name {component.name!r}: use lower-case words joined by '-'"
    return None
