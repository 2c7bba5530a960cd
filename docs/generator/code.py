# ruff: noqa: ISC004 - long sentences are written over several lines
"""The pages of hooks, of the Python API and of the plugin API."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pdtrim_core
from generator.markup import doc, table
from pdtrim_core import api, testing
from pdtrim_core.api import hookspecs
from pdtrim_core.api.component import Component
from pdtrim_core.api.plan_kinds import MakesPlans

ABOUT_NAMES = {
    "Along": 'Along which texts an item\'s models are compared: `"both"`, `"answers"` or `"right"`.',
    "Result": "What a searcher or splitter is sent back for a `Request`: a `Score`, a list of them, or None below a floor.",
    "Request": "What a searcher or splitter may yield: a `Plan`, a list of plans, `AtLeast(plan, floor)` or a `Note`.",
    "Element": "Anything that a removal is made of: `Drop`, `DropPart`, `Merge`, `Shrink` or `KvOnly`.",
    "hookimpl": "The decorator that marks a function of a plugin as the implementation of a hook.",
}
"""Names that can carry no docstring of their own."""


PAGE = 92
"""Letters of a line of code that a page of the site shows beside its contents, on a screen 1400 px wide."""


def hooks_page() -> str:
    """Return the page of hooks, by sort."""
    sorts: dict[str, list[str]] = {"registry": [], "question": [], "event": []}
    for name, hook in hooks():
        sorts[sort_of(hook)].append(f"### {name}\n\n```text\n{wrapped(name + signature(hook))}\n```\n\n{doc(hook)}")
    about = {
        "registry": "Yield component classes. The classes of all plugins are collected in the order of loading; those of a "
        "`tryfirst` hook come first, those of a `trylast` hook last. A wrapper is sent one list of classes for each plugin, and "
        "returns such a list.",
        "question": "Answer, or return None to let the next plugin try. The first answer counts. A plugin that raises is "
        "skipped.",
        "event": "Observe, but change nothing. A listener or wrapper that raises is muted after one warning, and the run goes "
        "on.",
    }
    parts = [
        "# Hooks",
        "A plugin is a module or object with functions that carry one of these names and are marked with "
        "`pdtrim_core.api.hookimpl`. pdtrim-core finds it through the entry point group `pdtrim`, or through the `plugins` key "
        "of a recipe. A hook may leave out arguments that it does not need.",
        "The plugin that was loaded last is called first. `hookimpl(tryfirst=True)` is called before all others, "
        "`hookimpl(trylast=True)` after them, and `hookimpl(wrapper=True)` around them: it yields once, is sent what they "
        "answered, and returns another answer, or None to leave theirs unchanged "
        "([an example](../how-to/write-a-plugin.md#order-and-wrappers)).",
    ]
    titles = {"registry": "Registries", "question": "Questions", "event": "Events"}
    for sort, texts in sorts.items():
        parts += [f"## {titles[sort]}", about[sort], *texts]
    return "\n\n".join(parts)


def hooks() -> Iterator[tuple[str, Any]]:
    """Yield every hook specification in the order of its module."""
    for name, value in vars(hookspecs).items():
        if inspect.isfunction(value) and hasattr(value, f"{hookspecs.PROJECT}_spec"):
            yield name, value


def sort_of(hook: Any) -> str:
    """Tell a registry (yields classes), a question (the first answer counts) and an event (returns nothing) apart."""
    if getattr(hook, f"{hookspecs.PROJECT}_spec")["firstresult"]:
        return "question"
    return "event" if inspect.signature(hook).return_annotation in (None, "None") else "registry"


def python_page() -> str:
    """Return the page of the names for those who use the package from Python."""
    parts = [
        "# Python API: to use",
        "These are the names of `pdtrim_core`, for those who [use it from Python](../how-to/from-python.md). What a plugin is "
        "made of is in [`pdtrim_core.api`](plugin-api.md). Names that need torch import it when they are first used.",
        *names_of(pdtrim_core),
    ]
    return "\n\n".join(parts)


def names_of(module: ModuleType) -> list[str]:
    """Return the table of a module's public names, and a section for each."""
    names = sorted(module.__all__, key=str.lower)
    rows = [[f"[`{name}`](#{name.lower()})", about_name(name)] for name in names]
    return [table(["name", "what it is"], rows), *(name_section(name) for name in names)]


def plugin_page() -> str:
    """Return the page of the names that a plugin is made of."""
    parts = [
        "# Python API: to extend",
        "These are the names of `pdtrim_core.api`. A plugin needs no others; one of any kind needs a few of them, which "
        "`pdtrim-core new` shows. Names that need torch import it when they are first used.",
        *names_of(api),
    ]
    parts += [
        "## pdtrim_core.testing",
        doc(testing),
        table(["name", "what it is"], [[f"`{name}`", about_testing(name)] for name in sorted(testing.__all__, key=str.lower)]),
    ]
    return "\n\n".join(parts)


def about_testing(name: str) -> str:
    """Return the first line of a docstring of the testing kit, from its source: importing contracts would need pytest."""
    for file in sorted(Path(testing.__file__).parent.rglob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        for node, behind in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                return (ast.get_docstring(node) or "").split("\n", maxsplit=1)[0]
            named = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name
            if named and isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
                return str(behind.value.value).split("\n", maxsplit=1)[0]
    return ""


def about_name(name: str) -> str:
    """Return the first line of a public name's docstring."""
    return ABOUT_NAMES.get(name) or doc(_named(name)).split("\n", maxsplit=1)[0]


def _named(name: str) -> Any:
    """Return the thing with a public name, which is the same in both groups where both have it."""
    return getattr(pdtrim_core if name in pdtrim_core.__all__ else api, name)


def name_section(name: str) -> str:
    """Return the section of one public name: its signature, docstring and public members."""
    value = _named(name)
    parts = [f"## {name}"]
    if name in ABOUT_NAMES:
        return "\n\n".join([*parts, ABOUT_NAMES[name]])
    if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, (Component, Exception))):
        parts.append(f"```text\n{wrapped(name + signature(value))}\n```")
    parts.append(doc(value))
    if inspect.isclass(value):
        rows = [[f"`{member}`", doc(thing).split("\n", maxsplit=1)[0]] for member, thing in members(value)]
        parts += [table(["member", "what it is"], rows)] if rows else []
    return "\n\n".join(parts)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class that have docstrings, as they are called."""
    for name, value in _own(cls).items():
        inner = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(inner) and inner.__doc__:
            is_method = isinstance(value, (classmethod, staticmethod)) or inspect.isfunction(value)
            yield f"{name}{signature(inner)}" if is_method else name, inner


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods that a class defines itself, those that must be defined first."""
    own = [(name, getattr(value, "__func__", value)) for name, value in _own(cls).items() if not name.startswith("_")]
    functions = [(name, value) for name, value in own if inspect.isfunction(value)]
    yield from sorted(functions, key=lambda pair: not getattr(pair[1], "__isabstractmethod__", False))


def _own(cls: type) -> dict[str, Any]:
    """Return what a class defines itself, or has from a base that it shares with another kind and that has no page."""
    shared = vars(MakesPlans) if issubclass(cls, MakesPlans) else {}
    return {**shared, **vars(cls)}


def signature(function: Any) -> str:
    """Return the signature of a function or class, without `self` and with annotations as they were written."""
    found = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=_bare(parameter.annotation), default=_shown(parameter.default))
        for name, parameter in found.parameters.items()
        if name not in ("self", "cls")
    ]
    return str(found.replace(parameters=parameters, return_annotation=_bare(found.return_annotation)))


def wrapped(call: str) -> str:
    """Return a call as it is written, an argument a line where it is wider than a page of the site."""
    if len(call) <= PAGE:
        return call
    begin, depth, parts = call.index("(") + 1, 0, [""]
    for at, letter in enumerate(call[begin:], start=begin):
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            arguments = "".join(f"    {part.strip()},\n" for part in parts if part.strip())
            return f"{call[:begin]}\n{arguments}{call[at:]}"
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return call


class Bare:
    """A part of a signature that shows as it was written, without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _shown(default: Any) -> Any:
    """Return a default value; of a function its name, since its address differs in every process."""
    return Bare(default.__name__) if inspect.isfunction(default) else default


def _bare(annotation: Any) -> Any:
    return Bare(annotation) if isinstance(annotation, str) else annotation
