"""What was removed and why, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pdtrim_core import Drop, DropPart, Element, KvOnly, Merge, Outcome, Plan, RunRecord, Shrink
from pdtrim_core.api import lost_units
from pdtrim_plugins.reports import nearness
from pdtrim_plugins.reports.html.wording import counted, element, joined, ranges


def sentence(record: RunRecord) -> str:
    """Return the sentence of a run."""
    outcome = record.outcome
    if outcome is None:
        return f"This run on {_model(record)} has not finished, so nothing has been removed; below is what it has measured."
    if outcome.saved_plan is None:
        return (
            f"{_use(outcome, 'pruner')} replaced {outcome.model} as a whole with a smaller model, the same in both stages: "
            "no single blocks were removed."
        )
    plan = outcome.plan.plan
    if not len(plan.decode) and not len(plan.prefill):
        whole = f"Both stages run all {outcome.block_count} blocks of {outcome.model}: nothing was removed"
        return f"{whole}{_formats(outcome)}{_selected(plan)}."
    later = f"{_recovered(outcome)}{_formats(outcome)}{_selected(plan)}"
    return f"Decode {_losses(plan.decode, outcome.block_count)}, {_reason(outcome)}; {_prefill(outcome, plan)}{later}."


def _model(record: RunRecord) -> str:
    model = record.recipe.get("model", {})
    return str(model.get("path", "a model") if isinstance(model, dict) else model)


def _use(outcome: Outcome, kind: str) -> str:
    return str(outcome.recipe.get(kind, {}).get("use", kind))


def _losses(elements: Iterable[Element], block_count: int) -> str:
    elements = tuple(elements)
    drops = [e.block for e in elements if isinstance(e, Drop)]
    merges = [e for e in elements if isinstance(e, Merge)]
    shrinks = [e for e in elements if isinstance(e, Shrink)]
    parts = [e for e in elements if isinstance(e, DropPart)]
    clauses = []
    if drops:
        clauses.append(f"runs without {counted(len(drops), 'block')} of {block_count} ({_which(drops)})")
    if merges:
        clauses.append(
            f"runs {joined([f'blocks {ranges(merge.blocks)}' for merge in merges])} as one{' each' * (len(merges) > 1)}"
        )
    for part, name in (("attention", "attention"), ("mlp", "MLP")):
        blocks = [e.block for e in parts if e.part == part]
        if blocks:
            clauses.append(f"runs without the {name} of {counted(len(blocks), 'block')} of {block_count} ({_which(blocks)})")
    for experts in (False, True):
        if narrowed := [e for e in shrinks if (e.part == "experts") == experts]:
            count = len({shrink.block for shrink in narrowed})
            clauses.append(f"runs {count} of {block_count} blocks with fewer {lost_units(narrowed)}")
    return joined(clauses) if clauses else "loses nothing"


def _which(blocks: Sequence[int]) -> str:
    """Return the blocks by number, or where they lie if there are many."""
    named = ranges(blocks)
    return named if len(named) <= 40 else f"between {blocks[0]} and {blocks[-1]}"


def _reason(outcome: Outcome) -> str:
    if "pruner" in outcome.recipe:
        return f"as {_use(outcome, 'pruner')} chose"
    items, tried = outcome.rows[0].calibration.items, len(outcome.search)
    searcher = _use(outcome, "searcher")
    best = f"the best of {tried} candidates that {searcher} tried" if tried > 1 else f"which {searcher} chose"
    return f"{best}, by {outcome.objective} on {counted(items, 'item')}"


def _prefill(outcome: Outcome, plan: Plan) -> str:
    removed = [e for e in plan.decode if e in plan.prefill]
    kept = [e for e in plan.decode if e not in plan.prefill and KvOnly(e.blocks[0]) not in plan.prefill]
    needed = threshold_of(outcome)
    if not len(plan.decode):
        text = "prefill computes less"
    elif not kept:
        reason = f", since keeping any one of them gains less than {_points(needed)}" if _all_below(outcome) else ""
        text = f"prefill loses the same{reason}"
    else:
        reason = f", which gain at least {_points(needed)} each" if _kept_above(outcome) else ""
        named = f" ({_named(kept)})" if len(kept) <= 4 else ""
        what = "all of that" if not removed else f"{len(kept)} of {len(plan.decode)}{named}"
        text = f"prefill keeps {what}{reason}"
    kv_only = [e.slot for e in plan.prefill if isinstance(e, KvOnly)]
    return f"{text}, and of block{'s' * (len(kv_only) > 1)} {ranges(kv_only)} it computes only the K/V" if kv_only else text


def _named(elements: Sequence[Element]) -> str:
    """Return elements in words; blocks that are gone by their numbers."""
    if all(isinstance(one, Drop) for one in elements):
        return f"block{'s' * (len(elements) > 1)} {ranges([one.blocks[0] for one in elements])}"
    return joined([element(str(one)) for one in elements])


def _recovered(outcome: Outcome) -> str:
    kept = nearness.kept_of(outcome.recovery)
    return f"; {joined(kept)} then gave the layers that are left other weights" if kept else ""


def _formats(outcome: Outcome) -> str:
    """Return which stages then got another number format."""
    formats = outcome.plan.formats
    if formats is None:
        return ""
    named = [f"{stage} {scheme}" for stage, scheme in (("prefill", formats.prefill), ("decode", formats.decode)) if scheme]
    return f"; {formats.quantizer} then gave {joined(named)} as the number format of linear layers"


def _selected(plan: Plan) -> str:
    """Return how many blocks of decode then read less of a prompt."""
    return f"; {counted(len(plan.selections), 'block')} of decode then read only some of a prompt" if plan.selections else ""


def _points(needed: float | None) -> str:
    return "" if needed is None else f"{needed:.3g} point{'' if needed == 1 else 's'}"


def threshold_of(outcome: Outcome) -> float | None:
    """Return the gain in score from which the splitter keeps an element in prefill, where it has such a threshold."""
    splitter = outcome.recipe.get("splitter", {})
    needed = splitter.get("threshold")
    if not isinstance(needed, int | float):
        return None
    unified = next((row.calibration.score for row in outcome.rows if row.name == "unified"), None)
    if splitter.get("unit") == "relative":
        return None if unified is None else needed / 100 * unified
    return float(needed)


def _all_below(outcome: Outcome) -> bool:
    needed = threshold_of(outcome)
    return needed is not None and bool(outcome.gains) and all(gain.gain < needed for gain in outcome.gains)


def _kept_above(outcome: Outcome) -> bool:
    needed = threshold_of(outcome)
    kept_in_prefill = [gain.gain for gain in outcome.gains if gain.kept_in_prefill]
    return needed is not None and bool(kept_in_prefill) and min(kept_in_prefill) >= needed
