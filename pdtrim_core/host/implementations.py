"""What a plugin implements: the functions that it marks as hooks, or what is wrong with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pdtrim_core.api import hookspecs
from pdtrim_core.host.compatibility import hook_names, problem_with_hook
from pdtrim_core.host.discovery import Origin
from pdtrim_core.host.tracing import HookCall, traced

_MARK = f"{hookspecs.PROJECT}_impl"
"""Where pluggy keeps the options of a function that is marked as a hook."""


class Sort(Enum):
    """The three sorts of hooks, see `hookspecs`."""

    REGISTRY = "registry"
    QUESTION = "question"
    EVENT = "event"


@dataclass(frozen=True)
class Implementation:
    """A function that a plugin has for a hook, the arguments that it takes, and the options that it is marked with."""

    hook: str
    origin: Origin
    function: Callable[..., Any]
    takes: tuple[str, ...]
    tryfirst: bool
    trylast: bool
    wrapper: bool

    @property
    def sort(self) -> Sort:
        """The sort of its hook: of a question the first answer counts, an event returns nothing."""
        spec = getattr(hookspecs, self.hook)
        if getattr(spec, f"{hookspecs.PROJECT}_spec")["firstresult"]:
            return Sort.QUESTION
        return Sort.EVENT if inspect.signature(spec).return_annotation in (None, "None") else Sort.REGISTRY

    @property
    def plugin(self) -> str:
        """The name under which pluggy knows the plugin."""
        return f"{self.origin.source}:{self.origin.plugin}"

    @property
    def rank(self) -> int:
        """Where it stands by its options: below zero with tryfirst, above with trylast."""
        return self.trylast - self.tryfirst

    def facts(self, given: Sequence[object]) -> dict[str, object]:
        """Return the arguments of the hook by name; pluggy passes them by position."""
        return dict(zip(inspect.signature(getattr(hookspecs, self.hook)).parameters, given, strict=True))

    def call(self, facts: Mapping[str, object]) -> Any:
        """Call the function with those of the facts that it takes."""
        return self.function(*(facts[name] for name in self.takes))

    def answer(self, returned: Any) -> Any:
        """Return what counts of what the function returned: a registry may be a generator, an event has no answer."""
        if self.sort is Sort.EVENT:
            return None
        if self.sort is Sort.QUESTION:
            return returned
        return [list(offered) for offered in returned] if self.wrapper else list(returned)

    def traced(self, facts: Mapping[str, object]) -> AbstractContextManager[HookCall]:
        """Trace a call; the model that a question is about would fill pages."""
        who = self.origin.source if self.sort is Sort.REGISTRY else self.plugin
        return traced(self.hook, who, **(facts if self.sort is Sort.EVENT else {}))


def implementations_of(plugin: object, origin: Origin) -> tuple[dict[str, Implementation], list[str]]:
    """Return what a module or object implements, by the names it has there, and what is wrong with it.

    Whatever looking at a foreign object raises comes through.
    """
    members = {name: getattr(plugin, name, None) for name in dir(plugin) if not name.startswith("__")}
    marked = {name: _implementation(name, member, origin) for name, member in members.items() if hasattr(member, _MARK)}
    wrong = [_problem_with(implementation) for implementation in marked.values()]
    unmarked = [f"{name} is not marked with @hookimpl" for name in members if name in hook_names() and name not in marked]
    return marked, [problem for problem in wrong if problem] + unmarked


def _implementation(name: str, function: Any, origin: Origin) -> Implementation:
    options = getattr(function, _MARK)
    return Implementation(
        hook=options["specname"] or name,
        origin=origin,
        function=function,
        takes=_arguments(function),
        tryfirst=options["tryfirst"],
        trylast=options["trylast"],
        wrapper=options["wrapper"],
    )


def _problem_with(implementation: Implementation) -> str | None:
    problem = problem_with_hook(implementation.hook, implementation.takes)
    if problem is None and getattr(implementation.function, _MARK)["hookwrapper"]:
        return f"{implementation.hook} is marked with hookwrapper=True, pluggy's old form: mark it with wrapper=True"
    if problem is None and implementation.wrapper and not inspect.isgeneratorfunction(implementation.function):
        return f"{implementation.hook} is marked with wrapper=True, but does not yield"
    return problem


def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments that a hook requires; those with a default are optional."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)
