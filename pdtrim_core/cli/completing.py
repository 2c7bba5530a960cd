"""What the shell completes: the words of arguments and options that only the plugins and the recipes of this machine know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

import typer
from pydantic import BaseModel

from pdtrim_core.api.kinds import KINDS, key_of, options_of
from pdtrim_core.api.model_source import DType
from pdtrim_core.host.host import Provided, load_plugins
from pdtrim_core.recipe import presets
from pdtrim_core.recipe.settings import Settings
from pdtrim_core.recipe.toml_data import LISTS
from pdtrim_core.results.task_results import Variant
from pdtrim_core.wording import one_line

PRESET = "preset"
"""What is said in place of a kind for a recipe that ships; no kind of components has this name."""
PLACEMENTS = {
    "auto": "an accelerator with room, and else several",
    "balanced": "spread over all accelerators",
    "stream": "in their files, one block at a time in memory",
    "cpu": "in main memory",
    "cuda": "on an accelerator of NVIDIA's or AMD's",
    "mps": "on an accelerator of Apple's",
}
LONGEST = 60
"""Characters of what a word means; typer breaks longer texts at the width of the terminal."""
Words = list[tuple[str, str]]
"""Words that may stand there, each with what it means, which zsh and fish show."""


def complete_presets(incomplete: str) -> Words:
    """Return the presets."""
    return _beginning(incomplete, ((name, presets.about(name)) for name in presets.NAMES))


def complete_methods(incomplete: str) -> Words:
    """Return the pruners."""
    return _beginning(incomplete, _named(load_plugins().of_kind("pruner")))


def complete_dtypes(incomplete: str) -> Words:
    """Return the number formats that weights are opened in."""
    return _beginning(incomplete, ((name, "") for name in get_args(DType)))


def complete_placements(incomplete: str) -> Words:
    """Return the places of weights that have a name on every machine."""
    return _beginning(incomplete, PLACEMENTS.items())


def complete_exporters(incomplete: str) -> Words:
    """Return the exporters; behind a comma one more, without those that are named already."""
    before, comma, last = incomplete.rpartition(",")
    more = _beginning(last, _named(load_plugins().of_kind("exporter")))
    return [(f"{before}{comma}{name}", about) for name, about in more if name not in before.split(",")]


def complete_variants(incomplete: str) -> Words:
    """Return the variants of a run; behind a comma one more, without those that are named already."""
    before, comma, last = incomplete.rpartition(",")
    return [
        (f"{before}{comma}{name}", "") for name in get_args(Variant) if name.startswith(last) and name not in before.split(",")
    ]


def complete_kinds(incomplete: str) -> Words:
    """Return the kinds of components."""
    return _beginning(incomplete, ((kind, "") for kind in KINDS))


def complete_described(context: typer.Context, incomplete: str) -> Words:
    """Return what may be described: all components, kinds and presets; behind a kind only what is of that kind."""
    before = context.params.get("words") or ()
    if not before:
        return _beginning(incomplete, [*_named(load_plugins().provided), *((kind, "") for kind in (*KINDS, PRESET))])
    if before[-1] == PRESET:
        return complete_presets(incomplete)
    return _beginning(incomplete, _named(load_plugins().of_kind(before[-1]))) if before[-1] in KINDS else []


def complete_settings(incomplete: str) -> Words:
    """Return the keys of a recipe with the options of every component; behind them a value is written."""
    return _beginning(incomplete, _keys())


def _keys() -> Iterator[tuple[str, str]]:
    yield from _keys_in(Settings)
    host = load_plugins()
    for kind in KINDS:
        key = key_of(kind)
        place = f"{key}.0" if kind in LISTS else key
        yield key, f"the {kind}"
        for provided in host.of_kind(kind):
            for name, field in options_of(provided.component):
                yield f"{place}.{name}", f"{provided.component.name}: {field.description}"


def _keys_in(table: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    for name, field in table.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _keys_in(inner, f"{place}{name}.")
        else:
            yield f"{place}{name}", field.description or ""


def _named(found: Iterable[Provided]) -> Iterator[tuple[str, str]]:
    for provided in found:
        lines = (provided.component.__doc__ or "").strip().splitlines()
        yield provided.component.name, lines[0] if lines else ""


def _beginning(incomplete: str, words: Iterable[tuple[str, str]]) -> Words:
    found: dict[str, str] = {}
    for word, about in words:
        if word.startswith(incomplete):
            found.setdefault(word, _brief(about))
    return list(found.items())


def _brief(about: str) -> str:
    """Return the beginning of a text, short enough that no shell is given it on two lines: each line is a word of its own."""
    line = one_line(about)
    return line if len(line) <= LONGEST else f"{line[:LONGEST].rsplit(maxsplit=1)[0]} ..."
