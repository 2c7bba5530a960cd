"""What changed for plugins: names, hooks, arguments of hooks and methods of components that are no more, and what to do instead.

A plugin does not say for which version it was made: what it defines tells. Whatever a release takes away or gives another
meaning gets a line here, under the name that old plugins use: "pdtrim_hook", "pdtrim_hook.argument" or "Kind.method". What
changes its meaning also gets a new name, so that an old plugin is never taken for a new one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping

from pdtrim_core import api
from pdtrim_core.api import hookspecs
from pdtrim_core.api.kinds import KINDS
from pdtrim_core.errors import did_you_mean

CHANGES: Mapping[str, str] = {
    "Objective.points": "is Objective.score since 0.2",
    "StageSplitter.split(space)": "is costs since 0.2, a CostModel with cost(plan, stage), block_count and model",
    "StageSplitter.steps(space)": "is plan since 0.2, the plan that split is given",
}
"""What to say of each name that is no more, such as "is pdtrim_find_blocks since 0.2"; of an argument, by "Kind.method(name)"."""
RENAMED: Mapping[str, str] = {
    "Answer": "Result",
    "Ask": "Request",
    "BlockPlace": "BlockLayout",
    "Points": "Score",
    "draw_ladder": "draw_diagram",
}
"""Names of 0.1 that plugins import, and what each is called in `pdtrim_core.api`."""
GONE: Mapping[str, str] = {
    "Shared": "is pdtrim_core.RunCache since 0.2",
    "StagedModel": "has no public name since 0.2: pdtrim_core.apply returns the pair that it is a part of",
    "Trunk": "has no public name since 0.2: pdtrim_core.apply makes what it was for",
}
"""Names of 0.1 that are not in `pdtrim_core.api`, and what to say of each."""


def where_name_went(name: str) -> str | None:
    """Return what to say of a name that `pdtrim_core` had in 0.1; None for one that it never had."""
    if name in GONE:
        return GONE[name]
    now = RENAMED.get(name, name)
    return f"is pdtrim_core.api.{now} since 0.2" if now in api.__all__ else None


def hook_names() -> list[str]:
    """Return the names of all hooks."""
    return [name for name in dir(hookspecs) if name.startswith("pdtrim_")]


def problem_with_hook(name: str, arguments: Iterable[str]) -> str | None:
    """Return why a function that is marked as a hook cannot be one, with what changed where an old plugin is at work."""
    if name not in hook_names():
        if name in CHANGES:
            return f"the hook {name} {CHANGES[name]}"
        return f"there is no hook {name}{did_you_mean(name, hook_names())}"
    taken = list(inspect.signature(getattr(hookspecs, name)).parameters)
    for argument in arguments:
        if argument not in taken:
            change = CHANGES.get(f"{name}.{argument}")
            known = did_you_mean(argument, taken) if taken else "; it takes no arguments"
            return f"the hook {name} has no argument '{argument}'" + (f": it {change}" if change else known)
    return None


def problem_with_methods(component: type, kind: str) -> str | None:
    """Return why a component cannot be called as its kind is: a method it must define is missing, or takes other arguments."""
    wanted = KINDS[kind]
    if inspect.isabstract(component):
        missing = sorted(getattr(component, "__abstractmethods__", ()))
        old = [f"{wanted.__name__}.{name}" for name in vars(component) if f"{wanted.__name__}.{name}" in CHANGES]
        change = f": {old[0]} {CHANGES[old[0]]}" if old else ""
        return f"{component.__name__} does not define {', '.join(missing)}{change}"
    renamed = _renamed_argument(component, wanted)
    if renamed:
        return renamed
    for name in sorted(getattr(wanted, "__abstractmethods__", ())):
        called = [parameter.name for parameter in inspect.signature(getattr(wanted, name)).parameters.values()]
        if isinstance(inspect.getattr_static(component, name), staticmethod):
            called = called[1:]
        try:
            inspect.signature(getattr(component, name)).bind(*called)
        except TypeError as error:
            arguments = ", ".join(argument for argument in called if argument != "self")
            changed = CHANGES.get(f"{wanted.__name__}.{name}")
            said = f"{component.__name__}.{name} cannot be called as {name}({arguments}): {error}"
            return said + (f"; {wanted.__name__}.{name} {changed}" if changed else "")
        except ValueError:
            # A function written in C may have no signature to read.
            continue
    return None


def _renamed_argument(component: type, wanted: type) -> str | None:
    """Return what to say of an argument that means something else now: its old name identifies it."""
    for key, change in CHANGES.items():
        kind, _, call = key.partition(".")
        name, bracket, argument = call.removesuffix(")").partition("(")
        method = vars(component).get(name)
        if (
            bracket
            and kind == wanted.__name__
            and inspect.isfunction(method)
            and argument in inspect.signature(method).parameters
        ):
            return f"{component.__name__}.{name} takes '{argument}', which {change}"
    return None
