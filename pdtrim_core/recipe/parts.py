"""The parts of a recipe: components made from its data, each problem reported as one sentence."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, overload

from pdtrim_core.api.component import Component
from pdtrim_core.api.kinds import key_of
from pdtrim_core.api.kv_selector import KvSelector
from pdtrim_core.api.layer_kinds import AS_IT_IS, Quantizer
from pdtrim_core.api.model_source import ModelSource
from pdtrim_core.api.writer_kinds import Exporter, Report
from pdtrim_core.errors import PdtrimError, RecipeError, did_you_mean, reason_of
from pdtrim_core.host.host import PluginHost
from pdtrim_core.recipe.toml_data import DEFAULT_QUANTIZER, DEFAULTS, LISTS, NONE, STAGED_SPLITTER
from pdtrim_core.recipe.validation import checked
from pdtrim_core.wording import shortened, shown

OWN_DISTRIBUTION = "pdtrim-core"


@overload
def make_parts(kind: Literal["exporter"], given: Any, host: PluginHost, *, where: str) -> tuple[Exporter, ...]: ...
@overload
def make_parts(kind: Literal["report"], given: Any, host: PluginHost, *, where: str) -> tuple[Report, ...]: ...
def make_parts(kind: str, given: Any, host: PluginHost, *, where: str) -> tuple[Any, ...]:
    """Return the components of a kind of which a recipe may list several, and no other parts of it.

    Raises `RecipeError` with all problems at once; `where` names in it what named the parts.
    """
    problems: list[str] = []
    made = _make_all(kind, given, host, problems)
    if problems:
        raise RecipeError(where, problems)
    return tuple(made)


def make_model(path: str, host: PluginHost, *, where: str) -> ModelSource:
    """Return the source that opens a path. Raises `RecipeError`; `where` names in it what named the path."""
    problems: list[str] = []
    source = _make_model(path, host, problems)
    if source is None:
        raise RecipeError(where, [problem.removeprefix("model.path: ") for problem in problems])
    return source


def parts_of(data: Mapping[str, Any], host: PluginHost, problems: list[str]) -> dict[str, Any]:
    """Return the parts that recipe data name, by kind: a component, a list where there may be several, None for what is optional.

    What is wrong is appended to `problems`, and the part is None then.
    """
    parts: dict[str, Any] = {"pruner": _make("pruner", data["pruner"], host, problems) if "pruner" in data else None}
    for kind, default in DEFAULTS.items():
        given = data.get(kind, default)
        if kind == "recovery" and kind not in data and getattr(parts["pruner"], "replaces_model", False):
            given = NONE
        if kind == "splitter" and kind not in data and getattr(parts["searcher"], "staged", False):
            given = STAGED_SPLITTER
        parts[kind] = _make_all(kind, given, host, problems) if kind in LISTS else _make(kind, given, host, problems)
    parts["model"] = _make_model(data.get("model"), host, problems)
    parts["quantizer"] = _make_quantizer(data, host, problems)
    parts["kv_selector"] = _make_selector(data, host, problems)
    return parts


def uses_of(data: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the names by which the data name the parts of each kind; the parts' own names where the data name none."""
    return {kind: _uses(kind, data.get(key_of(kind)), made) for kind, made in parts.items() if made is not None}


def _uses(kind: str, given: Any, made: Any) -> tuple[str, ...]:
    components = made if kind in LISTS else [made]
    if given == NONE:
        return ()
    entries = given if isinstance(given, list) else [given] * len(components)
    return tuple(_asked(kind, entry) or component.name for entry, component in zip(entries, components, strict=True))


def _asked(kind: str, entry: Any) -> str | None:
    if isinstance(entry, str):
        return None if kind == "model" else entry
    return entry.get("use") if isinstance(entry, dict) else None


def _make_all(kind: str, given: Any, host: PluginHost, problems: list[str]) -> list[Any]:
    if given == NONE:
        return []
    entries = given if isinstance(given, list) else [given]
    return [_make(kind, entry, host, problems) for entry in entries]


def _make(kind: str, given: Any, host: PluginHost, problems: list[str]) -> Component | None:
    options, key = {"use": given} if isinstance(given, str) else given, key_of(kind)
    if not isinstance(options, dict):
        problems.append(f"{key}: must be a name, or a table with the key 'use' (got {shown(given)})")
        return None
    name = options.get("use", None if kind in LISTS else DEFAULTS.get(kind))
    if name is None:
        problems.append(f"{key}.use: required key is missing")
        return None
    if not isinstance(name, str):
        article = "an" if kind[0] in "aeiou" else "a"
        problems.append(f"{key}.use: must be the name of {article} {kind} (got {shown(name)})")
        return None
    try:
        provided = host.find(kind, name)
    except RecipeError as error:
        problems += [f"{key}: {problem}{_of_later_steps(kind, name, host)}" for problem in error.problems]
        return None
    return checked(provided.component, {k: v for k, v in options.items() if k != "use"}, key, problems)


def _of_later_steps(kind: str, name: str, host: PluginHost) -> str:
    """Return where a component belongs that a recipe names among its recoveries, say, to have its step before one of them."""
    for later, place in (("quantizer", "the table [formats]"), ("kv_selector", "the key kv_selector")):
        if kind != later and name in {provided.component.name for provided in host.of_kind(later)}:
            return f"; '{name}' is a {later}, which {place} names: the order is fixed, prune, recover, quantise, select K/V"
    return ""


def _make_quantizer(data: Mapping[str, Any], host: PluginHost, problems: list[str]) -> Quantizer | None:
    """Return the quantizer of a recipe; None for one that names no formats."""
    if "quantizer" in data:
        problems.append('quantizer: unknown key; formats are named in a table [formats], such as decode = "W4A16"')
    if "formats" not in data:
        return None
    given = data["formats"]
    if not isinstance(given, dict):
        problems.append(f'formats: must be a table with the formats of the stages, such as decode = "W4A16" (got {shown(given)})')
        return None
    made = cast("Quantizer | None", _make("quantizer", {"use": DEFAULT_QUANTIZER, **given}, host, problems))
    if made is not None:
        named = {"decode": made.decode, "prefill": made.prefill}
        wrong = {stage: scheme for stage, scheme in named.items() if scheme not in (*made.schemes, AS_IT_IS)}
        problems += [
            f"formats.{stage}: quantizer '{made.name}' has no format '{shortened(scheme)}'{_nearest(scheme, made.schemes)}"
            for stage, scheme in wrong.items()
        ]
    return made


def _make_selector(data: Mapping[str, Any], host: PluginHost, problems: list[str]) -> KvSelector | None:
    """Return the selector of K/V of a recipe; None for one that names none, or says so."""
    given = data.get("kv_selector", NONE)
    return None if given == NONE else cast("KvSelector | None", _make("kv_selector", given, host, problems))


def _nearest(scheme: str, known: Sequence[str]) -> str:
    """Return advice on the name of a format, which people shorten and write in small letters."""
    same = [name for name in known if scheme and name.lower().startswith(scheme.lower())]
    return f"; did you mean '{same[0]}'?" if same else did_you_mean(scheme, known) or f"; there are {', '.join(known)}"


def _make_model(given: Any, host: PluginHost, problems: list[str]) -> ModelSource | None:
    if given is None:
        problems.append("model.path: required key is missing (a hub id, a folder, a .gguf file or package:NAME)")
        return None
    options = {"path": given} if isinstance(given, str) else given
    if isinstance(options, dict) and "use" not in options and isinstance(options.get("path"), str):
        try:
            source = _source_for(options["path"], host)
        except PdtrimError as error:
            problems.append(f"model.path: {error}")
            return None
        if source is None:
            known = ", ".join(p.component.name for p in host.of_kind("model"))
            # That of os.path says no to a name that no file can have; pathlib raises.
            absent = "" if os.path.exists(options["path"]) else ", and no folder or file has that name"  # noqa: PTH110
            problems.append(f"model.path: no model source takes '{shortened(options['path'])}' (sources: {known}){absent}")
            return None
        options = {"use": source, **options}
    elif isinstance(options, dict) and "use" not in options:
        wrong = f"must be a text, not {shown(options['path'])}" if "path" in options else "required key is missing"
        problems.append(f"model.path: {wrong} (a hub id, a folder, a .gguf file or package:NAME)")
        return None
    return cast("ModelSource | None", _make("model", options, host, problems))


def _source_for(path: str, host: PluginHost) -> str | None:
    """Return the first source that accepts a path; other people's come before ours, which take any name at the end.

    Every source is tried with every path, so one that fails is skipped with a warning: the path may not be meant for it.
    """
    sources = sorted(host.of_kind("model"), key=lambda provided: provided.origin.source == OWN_DISTRIBUTION)
    for provided in sources:
        try:
            accepted = cast("type[ModelSource]", provided.component).accepts(path)
        except Exception as error:  # noqa: BLE001 - foreign code, which a run of another model does not need
            what = f"{provided.label} failed when it was tried with '{shortened(path)}', and is skipped"
            warnings.warn(f"{what}: {reason_of(error, kind=True)}", stacklevel=2)
            continue
        if accepted:
            return provided.component.name
    return None
