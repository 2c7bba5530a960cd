"""Letting exporters write, those of a recipe at the end of its run or others later, and asking before whether they can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdtrim_core.api.export_facts import ExportFacts
from pdtrim_core.api.kinds import options_of
from pdtrim_core.api.writer_kinds import Exporter
from pdtrim_core.errors import PdtrimError, PluginError, RecipeError, blame, did_you_mean
from pdtrim_core.files.atomic_files import writing
from pdtrim_core.host.host import PluginHost
from pdtrim_core.recipe.parts import make_parts
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome

if TYPE_CHECKING:
    from pdtrim_core.model.block_model import BlockModel

LENT = ("merges", "recovered", "formats", "evaluations")
"""Folders of a run that exporters read."""


def make_exporters(names: Sequence[str], options: Mapping[str, Any], host: PluginHost) -> tuple[Exporter, ...]:
    """Return exporters by name; each gets those options that it has.

    Raises `RecipeError` for names and values that do not exist, and for an option that none of them has.
    """
    known = {name: {key for key, _ in options_of(host.find("exporter", name).component)} for name in names}
    everything = set().union(*known.values())
    unknown = [
        f"{key}: {', '.join(names)} has no such option{did_you_mean(key, everything)}" for key in options if key not in everything
    ]
    if unknown:
        raise RecipeError("--set", unknown)
    given = [{"use": name, **{key: value for key, value in options.items() if key in known[name]}} for name in names]
    return make_parts("exporter", given, host, where="--to")


def facts_of(recipe: Recipe, model: BlockModel | None = None, *, configs: dict[str, Any] | None = None) -> ExportFacts:
    """Return what exporters can know of a recipe before it runs; without the model, its config is opened when one asks.

    Only what is certain of its plan is in it: which of two parts is narrowed depends on the weights, and nothing is where
    nothing is to go. Recipes that are given the same `configs` open a config once.
    """
    pruner = recipe.pruner
    narrowing = pruner if recipe.settings.prune.blocks or recipe.settings.prune.fraction else None
    opened: dict[str, Any] = {} if configs is None else configs

    def open_config() -> Any:
        source = repr(recipe.model)
        if source not in opened:
            with blame(recipe.host.label_of(recipe.model)):
                opened[source] = recipe.model.open_config()
        return opened[source]

    return ExportFacts(
        model=recipe.model.path if model is None else model.name,
        out=recipe.out,
        open_config=open_config if model is None else lambda: model.model.config,
        first_token=recipe.settings.evaluation.first_token,
        replaced=pruner is not None and pruner.replaces_model,
        narrows=narrowing.narrows if narrowing is not None and len(narrowing.narrows) == 1 else frozenset(),
        uniform=narrowing is None or narrowing.uniform,
        formats={} if recipe.quantizer is None else recipe.quantizer.formats,
        selects=recipe.kv_selector is not None and recipe.kv_selector.selects,
        drops_parts=recipe.drops_parts,
        tokenizer=None if model is None else model.tokenizer,
        offloaded=model is not None and model.offloaded,
    )


def export_problems(exporters: Iterable[Exporter], host: PluginHost, facts: ExportFacts) -> list[str]:
    """Return why exporters could not write a run, as far as that is certain before it; each sentence once."""
    found: dict[str, dict[str, None]] = {}
    for exporter in exporters:
        with blame(host.label_of(exporter)):
            for problem in (*exporter.problems(facts), *exporter.core_problems(facts)):
                found.setdefault(problem, {})[f"'{exporter.name}'"] = None
    return [f"exporter {', '.join(names)}: {problem}" for problem, names in found.items()]


def write_exports(
    exporters: Iterable[Exporter], host: PluginHost, outcome: Outcome, model: BlockModel, out: Path
) -> Iterator[Path]:
    """Let exporters write under a folder and yield what they wrote. Raises `PluginError` for one that writes elsewhere."""
    for exporter in exporters:
        label = host.label_of(exporter)
        with blame(label):
            facts = ExportFacts.of_run(outcome, model, out)
            problems = exporter.core_problems(facts)
            if problems:
                raise PdtrimError(f"exporter '{exporter.name}': {problems[0]}")
            paths = list(exporter.export(outcome, model, out))
        for path in paths:
            if not path.resolve().is_relative_to(out.resolve()):
                raise PluginError(f"{label} wrote {path}, which is not under {out}")
            yield path


def remarks_on(exporters: Iterable[Exporter], host: PluginHost, model: BlockModel) -> Iterator[str]:
    """Yield what exporters say of what they write, each with its name."""
    for exporter in exporters:
        with blame(host.label_of(exporter)):
            remark = exporter.remark(model)
        if remark:
            yield f"{exporter.name}: {remark}"


@contextmanager
def lent(run: Path, out: Path) -> Iterator[None]:
    """Let what exporters read of a run be found under another folder, for as long as they write there.

    Raises `PdtrimError` for a folder that has things of those names already, such as that of another run.
    """
    if out.resolve() == run.resolve():
        yield
        return
    links = [out / name for name in LENT]
    taken = [link for link in links if link.exists() and not link.is_symlink()]
    if taken:
        raise PdtrimError(f"{taken[0]} exists, so {out} is the folder of another run: choose another folder with --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        try:
            for link in links:
                link.unlink(missing_ok=True)
                link.symlink_to((run / link.name).resolve(), target_is_directory=True)
            yield
        finally:
            for link in links:
                link.unlink(missing_ok=True)
