"""The model card of an exported folder: what was removed, from which model, measured how, with which numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdtrim_core import Drop, KvOnly, Merge, Removal, Shrink, results_in
from pdtrim_plugins.exporters.card_picture import PICTURE, has_picture, write_picture
from pdtrim_plugins.exporters.checkpoint_folder import CARD

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Metric, Outcome, Plan, SavedPlan

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FRONT_AT_MOST = 1_000_000
"""Characters of a card that its front matter lies in."""
FRONT = re.compile(r"^---\n(.*?)\n---", re.DOTALL)
LIBRARIES = {"gguf": "gguf", "prefill": "vllm", "serve": "vllm"}
LICENSE_KEYS = ("license", "license_name", "license_link")


def write_card(folder: Path, outcome: Outcome, text: str) -> None:
    """Write README.md into a folder, with a picture beside it where the run compared its variants with the dense model."""
    (folder / CARD).write_text(text, encoding="utf-8")
    if has_picture(outcome):
        write_picture(outcome, folder / PICTURE)


def card(outcome: Outcome, model: BlockModel, *, role: str, text: str, run: Path, plan: Plan | None = None) -> str:
    """Return the text of README.md. `role` names the folder, `text` says how it is used, `run` may hold benchmark results.

    `plan` is what is in the folder where that is not the very plan of the run.
    """
    saved = outcome.plan
    plan = plan or saved.plan
    parts = [
        _front(model, role),
        f"# {_short(model.name)}, {role}",
        text,
        _origin(model, saved),
        "## What was removed",
        f"Of {saved.block_count} blocks, counted from 0:",
        "\n".join(f"* {stage}: {_removed(plan.removal(stage))}" for stage in ("prefill", "decode")),
        *_recovery(outcome),
        *_formats(outcome),
        *_readings(outcome, saved),
        *_fidelity(outcome),
        _benchmarks(run),
        *(["## What it saves", _table(["", "dense", "pruned", "change"], _costs(outcome))] if outcome.costs else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(model: BlockModel, saved: SavedPlan) -> str:
    return (
        f"Made with pdtrim-core {metadata.version('pdtrim-core')} from `{model.name}` (weights `{saved.fingerprint[:12]}`); "
        f"plan_hash `{saved.digest}`. {_license_text(model)}"
    )


def _front(model: BlockModel, role: str) -> str:
    license_of = _license(model)
    lines = ["---", *(f"{key}: {value}" for key, value in license_of.items())]
    if not license_of:
        lines += ["license: other", "license_name: that-of-the-base-model"]
    if HUB_ID.fullmatch(model.name) and not Path(model.name).exists():
        lines += [f"base_model: {model.name}", "base_model_relation: finetune"]
    tags = ["pdtrim", "pruned", role]
    lines += [
        f"library_name: {LIBRARIES.get(role, 'transformers')}",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join([*lines, "---"])


def _license(model: BlockModel) -> dict[str, str]:
    """Return the licence of the source model as front matter: from the model source, or from the model's own card."""
    if model.license:
        return {"license": model.license.lower()}
    for readme in _cards_of(model):
        with readme.open(encoding="utf-8", errors="replace") as file:
            found = FRONT.match(file.read(FRONT_AT_MOST))
        if found:
            lines = dict(re.findall(r"^(\w+): *(\S.*?) *$", found[1], re.MULTILINE))
            return {key: lines[key] for key in LICENSE_KEYS if key in lines}
    return {}


def _cards_of(model: BlockModel) -> Iterable[Path]:
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        readme = folder / "README.md"
    elif HUB_ID.fullmatch(model.name):
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - comes with transformers

        cached = try_to_load_from_cache(model.name, "README.md")
        readme = Path(cached) if isinstance(cached, str) else folder
    else:
        return
    if readme.is_file():
        yield readme


def _license_text(model: BlockModel) -> str:
    found = _license(model)
    name = found.get("license_name") or found.get("license")
    if name is None:
        return "The licence of the source model applies; it was not found beside the model, so look it up before you share this."
    return f"The licence of the source model applies: {name}."


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].removeprefix("package:")


def _removed(removal: Removal) -> str:
    drops = [str(e) for e in removal if isinstance(e, Drop)]
    merges = [str(e) for e in removal if isinstance(e, Merge)]
    kv_only = [str(e.slot) for e in removal if isinstance(e, KvOnly)]
    parts = [
        f"removed: {', '.join(drops)}" if drops else "",
        f"merged into one block: {', '.join(merges)}" if merges else "",
        f"K/V only: {', '.join(kv_only)}" if kv_only else "",
        *_parts(removal),
        *_shrinks([e for e in removal if isinstance(e, Shrink)]),
    ]
    return "; ".join(part for part in parts if part) or "the dense model"


def _parts(removal: Removal) -> Iterable[str]:
    for part, name in (("attention", "attention"), ("mlp", "MLP")):
        blocks = [str(e.block) for e in removal.dropped_parts if e.part == part]
        if blocks:
            yield f"without {name}: {', '.join(blocks)}"


def _shrinks(shrinks: Sequence[Shrink]) -> Iterable[str]:
    for part, unit in (("attention", "K/V heads"), ("mlp", "MLP channels"), ("experts", "experts")):
        counts = [f"{len(e.units)} in block {e.block}" for e in shrinks if e.part == part]
        if counts:
            yield f"fewer {unit}: {', '.join(counts)}"


def _recovery(outcome: Outcome) -> list[str]:
    """Return what gave the layers that are left other weights, from how much text, and what it was good for."""
    if not outcome.recovery:
        told = "The layers that are left have other weights than in the source model; its run, which says from what, is not here."
        return ["## What was recovered", told] if outcome.plan.recovered else []
    sources = ", ".join(map(_source, outcome.recipe["recovery_data"]["sources"]))
    kept = any(result.kept for result in outcome.recovery)
    what = (
        "The layers that are left have other weights than in the source model"
        if kept
        else "Nothing: no recovery brought the pair nearer to the dense model, so all weights are those of the source model"
    )
    header = ["", "computed from", "weights in prefill", "weights in decode", "KL before", "KL after", "kept"]
    rows = [
        [
            _use(part),
            f"{result.texts:,} texts, {result.tokens:,} tokens",
            *(f"{result.changed[stage]:,}" for stage in ("prefill", "decode")),
            *(_metric(metric) for metric in (result.before, result.after)),
            "yes" if result.kept else "no",
        ]
        for part, result in zip(outcome.recipe["recovery"], outcome.recovery, strict=True)
    ]
    text = f"{what}. Texts: {sources}. KL(dense, pair) is in nats a token, on other texts of that sort."
    return ["## What was recovered", text, _table(header, rows)]


def _formats(outcome: Outcome) -> list[str]:
    """Return which number formats the stages have, and what they cost in divergence."""
    formats = outcome.plan.formats
    if formats is None:
        return []
    stages = {"prefill": formats.prefill, "decode": formats.decode}
    named = "\n".join(f"* {stage}: {scheme or 'as in the source'}" for stage, scheme in stages.items())
    text = (
        f"Linear layers of the blocks, by `{_use(outcome.recipe['formats'])}`; embeddings, norms and the head as in the source."
    )
    found = outcome.fidelity.quantized if outcome.fidelity is not None else None
    cost = "" if found is None else f"KL(dense, pair) is {_metric(found)} nats a token more than before."
    return ["## Number formats", text, named, *filter(None, [cost])]


def _source(source: str) -> str:
    return "written by the dense model" if source == "generated" else Path(source).name


def _readings(outcome: Outcome, saved: SavedPlan) -> list[str]:
    """Return how it was measured; of a plan without its run, that this is not known."""
    if not outcome.rows:
        return ["Made from a plan alone: what was measured stands in the run that found it."]
    head = ["", f"{outcome.objective}, items searched on", "held-out items"]
    return ["## How it was measured", _measured(outcome, saved), _table(head, _rows(outcome))]


def _fidelity(outcome: Outcome) -> list[str]:
    """Return how near the variants of the run are to the dense model, on items that nothing was chosen on."""
    found = outcome.fidelity
    if found is None:
        return []
    named = {"KL, nats a token": ("kl", 1), "same token, %": ("top1", 100), "accepted, %": ("acceptance", 100)}
    named["perplexity"] = ("perplexity", 1)
    rows = [
        [variant, *(_scaled(metrics.get(name), scale) for name, scale in named.values())]
        for variant, metrics in found.variants.items()
    ]
    about = f"Along the dense model's own answers to {found.items} held-out items; `staged` is the pair of prefill and decode, "
    about += "`unified` the decode model in both stages, `unrecovered` the pair before its recovery."
    shown = [f"![KL divergence from the dense model]({PICTURE})"] if has_picture(outcome) else []
    return ["## How near it is to the dense model", about, _table(["", *named], rows), *shown]


def _scaled(metric: Metric | None, scale: float) -> str:
    if metric is None:
        return ""
    error = f" +- {scale * metric.error:.2g}" if metric.error else ""
    return f"{scale * metric.value:.4g}{error}"


def _measured(outcome: Outcome, saved: SavedPlan) -> str:
    recipe, environment = outcome.recipe, outcome.environment
    parts = {
        "objective": outcome.objective,
        "calibration": _use(recipe.get("calibration")),
        "scorer": _use(recipe.get("scorer")),
        "searcher": _use(recipe.get("searcher")),
        "pruner": _use(recipe.get("pruner")),
        "splitter": _use(recipe.get("splitter")),
        "seed": str(recipe.get("seed", "")),
        "first token": f"made by {saved.first_token}",
        "machine": f"{environment.machine}, {environment.device}",
        "versions": ", ".join(f"{name} {version}" for name, version in environment.versions.items()),
    }
    return "\n".join(f"* {name}: {value}" for name, value in parts.items() if value)


def _use(part: Any) -> str:
    if isinstance(part, Mapping):
        options = [
            f"{key} = {value}"
            for key, value in part.items()
            if key not in ("use", "optional") and not isinstance(value, Mapping | list)
        ]
        return f"{part.get('use', '')} ({', '.join(options)})" if options else str(part.get("use", ""))
    return str(part or "")


def _rows(outcome: Outcome) -> list[list[str]]:
    found = []
    for row in outcome.rows:
        values = [f"{v.score:.1f} +- {v.error:.1f} ({v.items} items)" if v else "" for v in (row.calibration, row.held_out)]
        found.append([row.name, *values])
    return found


def _benchmarks(run: Path) -> str:
    rows = [
        [result.task, result.variant, result.main, _metric(metric)]
        for result in results_in(run)
        if (metric := result.metrics.get(result.main)) is not None
    ]
    return "Benchmarks:\n\n" + _table(["task", "variant", "metric", "value"], rows) if rows else ""


def _metric(metric: Metric) -> str:
    return f"{metric.value:.4g}" + (f" +- {metric.error:.2g}" if metric.error else "")


def _costs(outcome: Outcome) -> list[list[str]]:
    return [[f"{c.name} ({c.unit})", f"{c.dense:,.0f}", f"{c.plan:,.0f}", f"{-100 * c.saved:+.1f} %"] for c in outcome.costs]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
