"""Recipes: what a run should do, read from TOML and checked whole, with all problems reported at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import tomli
from pydantic import BaseModel, ValidationError

from pdtrim_core.components import (
    KINDS,
    CalibrationSource,
    Component,
    Distiller,
    Exporter,
    ModelSource,
    Objective,
    Pruner,
    Report,
    Scorer,
    Searcher,
    StageSplitter,
)
from pdtrim_core.errors import PdtrimError, RecipeError, blame, did_you_mean
from pdtrim_core.plugins import PluginHost
from pdtrim_core.settings import Settings

M = TypeVar("M", bound=BaseModel)

OWN_DISTRIBUTION = "pdtrim-core"


DEFAULTS: dict[str, Any] = {
    "scorer": "cosine",
    "searcher": "annealing",
    "distiller": "mse",
    "splitter": "gain",
    "objective": "accuracy",
    "calibration": "mini",
    "exporter": ["plan"],
    "report": ["table"],
}
STAGED_SPLITTER = "as-found"
"""The splitter of a recipe that names none, where its searcher finds both stages."""
LISTS = ("exporter", "report")
REPLACED_BY_PRUNER = ("scorer", "searcher")


@dataclass(frozen=True)
class Recipe:
    """A recipe whose every part is checked and made."""

    settings: Settings
    out: Path
    model: ModelSource
    scorer: Scorer
    searcher: Searcher
    pruner: Pruner | None
    distiller: Distiller
    splitter: StageSplitter
    objective: Objective
    calibration: CalibrationSource
    exporters: tuple[Exporter, ...]
    reports: tuple[Report, ...]
    uses: Mapping[str, tuple[str, ...]]
    """The names by which the recipe asked for its components, by kind: two distributions may offer the same one."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of component that this recipe has one of; a pruner takes the place of others."""
        finders = REPLACED_BY_PRUNER if self.pruner is None else ("pruner",)
        splitter = () if self.pruner is not None and self.pruner.replaces_model else ("splitter",)
        return ("model", *finders, "distiller", *splitter, "objective", "calibration")

    def to_data(self) -> dict[str, Any]:
        """Return the resolved recipe, every option spelt out, as TOML data that reads back to the same recipe."""
        data = _without_none(self.settings.model_dump(mode="json"))
        data["out"] = str(self.out)
        for kind in self.kinds:
            data[kind] = _component_data(self.uses[kind][0], getattr(self, kind))
        for kind, components in (("exporter", self.exporters), ("report", self.reports)):
            data[kind] = [_component_data(use, part) for use, part in zip(self.uses[kind], components, strict=True)]
        return data


def _component_data(use: str, component: Component) -> dict[str, Any]:
    return {"use": use, **_without_none(component.model_dump(mode="json"))}


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    """Return data without keys that hold None, which TOML cannot say; at every depth."""
    return {key: _without_none(value) if isinstance(value, dict) else value for key, value in data.items() if value is not None}


def load(path: Path) -> dict[str, Any]:
    """Return the data of a recipe file. Raises `RecipeError` naming the line for what is not TOML."""
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(str(path), ["no such file"]) from None
    except IsADirectoryError:
        raise RecipeError(str(path), ["this is a folder: name the recipe in it"]) from None
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), [f"not text in UTF-8 (byte {error.start})"]) from None
    except tomli.TOMLDecodeError as error:
        raise RecipeError(str(path), [f"not valid TOML: {error}"]) from None


def plugin_files(data: Mapping[str, Any], recipe: Path) -> list[Path]:
    """Return the plugin files that a recipe names, relative to its own folder."""
    names = data.get("plugins", [])
    return [recipe.parent / name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def override(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return recipe data with settings of the form "key.subkey=value" put in; a value is TOML, or else a string."""
    for setting in settings:
        keys, value = parse_setting(setting)
        data = put(data, keys, value)
    return data


def parse_setting(setting: str) -> tuple[list[str], Any]:
    """Return the keys and the value of a setting of the form "key.subkey=value"."""
    key, equals, value = setting.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError("--set", [f"'{setting}': say KEY=VALUE, such as searcher.t0=5"])
    return key.strip().split("."), _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text


def put(data: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return recipe data with one value put in; a component that was given by its name becomes a table on the way."""
    if len(keys) == 1:
        return {**data, keys[0]: value}
    inner = data.get(keys[0], DEFAULTS.get(keys[0], {}))
    inner = {"path" if keys[0] == "model" else "use": inner} if isinstance(inner, str) else inner
    return {**data, keys[0]: put(inner if isinstance(inner, dict) else {}, keys[1:], value)}


def resolve(data: Mapping[str, Any], host: PluginHost, *, where: str, out: Path | None = None) -> Recipe:
    """Make every part that recipe data name. Raises `RecipeError` with all problems at once.

    `where` names the recipe in messages, and its stem the run folder; `out` overrides that folder.
    """
    problems: list[str] = []
    own = {key: value for key, value in data.items() if key not in KINDS}
    settings = checked(Settings, own, "", problems, also=KINDS)
    parts: dict[str, Any] = {}
    given = {**DEFAULTS, **{key: data[key] for key in data if key in KINDS}}
    for kind in DEFAULTS:
        if kind == "splitter" and kind not in data and getattr(parts["searcher"], "staged", False):
            given[kind] = STAGED_SPLITTER
        parts[kind] = _make_all(kind, given[kind], host, problems)
    parts["model"] = _make_model(data.get("model"), host, problems)
    parts["pruner"] = _make("pruner", data["pruner"], host, problems) if "pruner" in data else None
    problems += [*_conflicts(data), *_nothing_to_split(data, parts["pruner"])]
    if problems or settings is None:
        raise RecipeError(where, problems)
    folder = out or Path(settings.out or f"runs/{Path(where).stem}")
    # The resolved recipe is written to the run folder, from where a relative path would lead elsewhere.
    files = tuple(str(path.resolve()) for path in plugin_files(data, Path(where)))
    uses = {kind: _uses(kind, given.get(kind), part) for kind, part in parts.items() if part is not None}
    return Recipe(
        settings=settings.model_copy(update={"plugins": files}),
        uses=uses,
        out=folder,
        exporters=tuple(parts.pop("exporter")),
        reports=tuple(parts.pop("report")),
        **parts,
    )


def read(path: Path, host: PluginHost, *, settings: Sequence[str] = (), out: Path | None = None) -> Recipe:
    """Return the recipe in a file, with `--set` overrides put in. Raises `RecipeError` with all problems at once."""
    return resolve(override(load(path), settings), host, where=str(path), out=out)


def resolve_reports(data: Mapping[str, Any], host: PluginHost, *, where: str) -> tuple[Report, ...]:
    """Make the reports that resolved recipe data name, and nothing else: an old run needs none of its other parts."""
    return tuple(make_parts("report", data.get("report", DEFAULTS["report"]), host, where=where))


def make_parts(kind: str, given: Any, host: PluginHost, *, where: str) -> list[Any]:
    """Make the components of a kind that recipes list. Raises `RecipeError` with all problems at once."""
    problems: list[str] = []
    parts: list[Any] = _make_all(kind, given, host, problems)
    if problems:
        raise RecipeError(where, problems)
    return parts


def _conflicts(data: Mapping[str, Any]) -> list[str]:
    """Return what a recipe says that does not go together."""
    prune, problems = data.get("prune", {}), []
    if isinstance(prune, dict):
        if "blocks" in prune and "fraction" in prune:
            problems.append("prune: say blocks or fraction, not both")
        if "blocks" not in prune and "fraction" not in prune:
            problems.append("prune.blocks: required key is missing (or give prune.fraction)")
    if "pruner" in data:
        replaced = [kind for kind in REPLACED_BY_PRUNER if kind in data]
        if isinstance(prune, dict) and "merge_above" in prune:
            replaced.append("prune.merge_above")
        problems += [f"{key}: a pruner finds what decode loses, so leave this out, or leave out pruner" for key in replaced]
    return problems


def _nothing_to_split(data: Mapping[str, Any], pruner: Pruner | None) -> list[str]:
    """Return what is wrong with a splitter beside a pruner that gives a whole other model."""
    if pruner is None or not pruner.replaces_model or "splitter" not in data:
        return []
    what = f"pruner '{pruner.name}' gives a whole other model, not a removal, so there is nothing to split between the stages"
    return [f"splitter: {what}: leave this out, or choose another pruner"]


def _uses(kind: str, given: Any, made: Any) -> tuple[str, ...]:
    """Return the names by which components of a kind were asked for; their own where the recipe left them open."""
    entries = given if isinstance(given, list) else [given]
    components = made if kind in LISTS else [made]
    return tuple(_asked(kind, entry) or component.name for entry, component in zip(entries, components, strict=True))


def _asked(kind: str, entry: Any) -> str | None:
    if isinstance(entry, str):
        return None if kind == "model" else entry
    return entry.get("use") if isinstance(entry, dict) else None


def _make_all(kind: str, given: Any, host: PluginHost, problems: list[str]) -> Any:
    if kind not in LISTS:
        return _make(kind, given, host, problems)
    entries = given if isinstance(given, list) else [given]
    return [_make(kind, entry, host, problems) for entry in entries]


def _make(kind: str, given: Any, host: PluginHost, problems: list[str]) -> Component | None:
    options = {"use": given} if isinstance(given, str) else given
    if not isinstance(options, dict):
        problems.append(f"{kind}: must be a name, or a table with the key 'use' (got {given!r})")
        return None
    name = options.get("use", None if kind in LISTS else DEFAULTS.get(kind))
    if name is None:
        problems.append(f"{kind}.use: required key is missing")
        return None
    if not isinstance(name, str):
        article = "an" if kind[0] in "aeiou" else "a"
        problems.append(f"{kind}.use: must be the name of {article} {kind} (got {name!r})")
        return None
    try:
        provided = host.find(kind, name)
    except RecipeError as error:
        problems += [f"{kind}: {problem}" for problem in error.problems]
        return None
    return checked(provided.component, {k: v for k, v in options.items() if k != "use"}, kind, problems)


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
            problems.append(f"model.path: no model source takes '{options['path']}' (sources: {known})")
            return None
        options = {"use": source, **options}
    elif isinstance(options, dict) and "use" not in options:
        wrong = f"must be a text, not {options['path']!r}" if "path" in options else "required key is missing"
        problems.append(f"model.path: {wrong} (a hub id, a folder, a .gguf file or package:NAME)")
        return None
    return cast("ModelSource | None", _make("model", options, host, problems))


def _source_for(path: str, host: PluginHost) -> str | None:
    """Return the first source that accepts a path; other people's come before ours, which take any name at the end."""
    sources = sorted(host.of_kind("model"), key=lambda provided: provided.origin.source == OWN_DISTRIBUTION)
    for provided in sources:
        with blame(provided.label):
            if cast("type[ModelSource]", provided.component).accepts(path):
                return provided.component.name
    return None


def checked(model: type[M], data: Mapping[str, Any], place: str, problems: list[str], *, also: Iterable[str] = ()) -> M | None:
    """Return the model made from data, or None with what is wrong appended to `problems`; `place` names the data."""
    try:
        # JSON in strict mode bends nothing: true is no number and "5" is none, but a list may become a tuple.
        return model.model_validate_json(json.dumps(dict(data), default=_no_json), strict=True)
    except ValidationError as error:
        problems += [_sentence(model, detail, place, also) for detail in error.errors()]
    return None


def _no_json(value: object) -> dict[str, str]:
    """Return something that no option takes for a TOML value that JSON does not know: a date or a time."""
    return {type(value).__name__: str(value)}


def _sentence(model: type[BaseModel], detail: Mapping[str, Any], place: str, also: Iterable[str]) -> str:
    location = [str(part) for part in detail["loc"] if not str(part).startswith("tag:")]
    key = ".".join([place, *location] if place else location)
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(location[-1], _keys_at(model, location[:-1], also))}"
    if detail["type"] == "missing":
        return f"{key}: required key is missing"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if detail["type"] in ("model_type", "model_attributes_type"):
        message = "must be a table"
    return f"{key}: {message} (got {detail['input']!r})"


def _keys_at(model: type[BaseModel], path: Sequence[str], also: Iterable[str]) -> list[str]:
    fields = model.model_fields
    for part in path:
        inner = _table_in(fields[part].annotation) if part in fields else None
        if inner is None:
            return []
        fields, also = inner.model_fields, ()
    return [*fields, *also]


def _table_in(annotation: Any) -> type[BaseModel] | None:
    """Return the table that a field holds, or may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((table for part in get_args(annotation) if (table := _table_in(part)) is not None), None)


def schema(host: PluginHost) -> dict[str, Any]:
    """Return the JSON schema of recipes for the components that are loaded, for editors."""
    result = Settings.model_json_schema()
    definitions = result.setdefault("$defs", {})
    for kind in KINDS:
        tables = []
        for provided in host.of_kind(kind):
            part = provided.component.model_json_schema()
            definitions.update(part.pop("$defs", {}))
            names = [provided.component.name, f"{provided.origin.source}/{provided.component.name}"]
            part["properties"] = {"use": {"enum": names}, **part.get("properties", {})}
            if kind != "model" and provided.component.name != DEFAULTS.get(kind):
                part["required"] = ["use", *part.get("required", [])]
            tables.append(part)
        names = [name for table in tables for name in table["properties"]["use"]["enum"]]
        one = {"anyOf": [{"type": "string"} if kind == "model" else {"enum": names}, *tables]}
        result["properties"][kind] = {"anyOf": [one, {"type": "array", "items": one}]} if kind in LISTS else one
    result["required"] = ["model", "prune"]
    return {**result, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pdtrim-core recipe"}
