"""Recovering a pair: the recipe's recoveries one by one, each kept only where the pair comes nearer to the dense model."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError
from torch import nn

from pdtrim_core.api.recovery_context import RecoveryContext, checking
from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError, PluginError, blame
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.recovered_weights import (
    RECOVERED,
    STAGES,
    digest_of,
    load_recovered,
    save_recovered,
)
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.walked import Walked
from pdtrim_core.fidelity.statistics import ratio
from pdtrim_core.files.atomic_files import write_whole, writing
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.host.sources import engine
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.found_removal import FoundRemoval
from pdtrim_core.pipeline.opening_tokens import opening_tokens
from pdtrim_core.pipeline.recovered_layers import alone
from pdtrim_core.pipeline.recovery_contract import check_change, recovered_tensors
from pdtrim_core.pipeline.recovery_order import Changed, changed_by, order_notes
from pdtrim_core.pipeline.recovery_texts import CHECKED, RecoveryTexts
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.plan.plan import Plan, RecoveredPart
from pdtrim_core.plan.plan_file import plan_to_json
from pdtrim_core.results.outcome import LARGEST
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.task_results import Metric

MOST_LOSSES = 500
"""Losses of a training that an outcome has at most."""
RECORD = "recovery.json"
"""The file beside recovered weights that says how they came about."""
WORK = "recovery-work"
"""The folder of a run in which a long training keeps how far it has come."""


Divergences = list[list[float]]
"""KL(dense || pair), in nats, at each token of each text."""


@dataclass(frozen=True)
class Recovered:
    """What recovery made of a plan: layers with other weights, a table of first tokens, how each came out, and a hash of all."""

    plan: Plan = field(default_factory=Plan)
    layers: Mapping[RecoveredPart, nn.Module] = field(default_factory=dict)
    results: tuple[RecoveryResult, ...] = ()
    digest: str = ""

    def modules(self, block_count: int) -> dict[RecoveredPart, nn.Module]:
        """Return the layers of the pair, and those of decode in both stages."""
        return {**self.layers, **alone(self.plan, self.layers, block_count, "decode")}


def recover(context: RunContext, inputs: RunInputs, found: FoundRemoval, plan: Plan) -> Recovered:
    """Let the recipe's recoveries change the layers of a plan, or read what they made of it in this folder before."""
    folder = context.folder.path / RECOVERED
    if not inputs.recoveries:
        return Recovered()
    with context.events.step("recover"):
        key = _key(context, inputs, found, plan)
        known = None if context.fresh else _known(key, plan, inputs.model, found.modules, folder)
        if known is None:
            known = _recovered(context, inputs, found, plan)
            save_recovered(plan, inputs.model, {**found.modules, **known.layers}, folder)
            known = replace(known, digest=digest_of(folder))
            results = TypeAdapter(tuple[RecoveryResult, ...]).dump_python(known.results, mode="json")
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / RECORD, json.dumps({"key": key, "digest": known.digest, "results": results}, indent=1) + "\n")
            # Not earlier: a run that is killed in a later recovery has the work of those before it.
            _forget_work(context)
        else:
            for result in known.results:
                context.host.tell("pdtrim_recovery_finished", result=result)
        return known


def check_texts(context: RunContext, inputs: RunInputs) -> RunInputs:
    """Return the inputs of a run whose recoveries have their texts; called before anything is measured.

    Where these would be refused, raises `PdtrimError`, or, where all recoveries are optional, says so and leaves them out.
    """
    if not inputs.recoveries:
        return inputs
    texts = RecoveryTexts(context, inputs)
    try:
        texts.check(_texts_of(inputs, texts))
    except PdtrimError as error:
        if not all(recovery.optional for recovery in inputs.recoveries):
            raise
        context.events.note(f"{error}; no recovery is done")
        return replace(inputs, recoveries=())
    return inputs


def _texts_of(inputs: RunInputs, texts: RecoveryTexts) -> int:
    return CHECKED + max(recovery.texts(texts.text_tokens) for recovery in inputs.recoveries)


def _forget_work(context: RunContext) -> None:
    shutil.rmtree(context.folder.path / WORK, ignore_errors=True)


def _recovered(context: RunContext, inputs: RunInputs, found: FoundRemoval, plan: Plan) -> Recovered:
    if context.fresh:
        _forget_work(context)
    recipe, texts = context.recipe, RecoveryTexts(context, inputs)
    counts = {recovery: recovery.texts(texts.text_tokens) for recovery in inputs.recoveries}
    drawn = texts.items(_texts_of(inputs, texts))
    tried = _Tried(dict(found.modules), None, None)
    results, kept, cache = [], list[Changed](), None
    for number, recovery in enumerate(inputs.recoveries):
        pair = Walked(
            inputs.model,
            plan,
            dict(tried.modules),
            drawn[CHECKED : CHECKED + counts[recovery]],
            first_token=recipe.settings.evaluation.first_token,
            batch_tokens=recipe.settings.evaluation.batch_tokens,
        )
        start, cache = tried.modules, cache or checking(pair)
        tried = _one(context, inputs, number, pair, _Checked(drawn[:CHECKED], cache, tried.divergences))
        if tried.result is None:
            continue
        if tried.result.kept:
            kept.append(changed_by(f"recovery '{recovery.name}' ({number + 1} in the list)", pair, start))
            for note in order_notes(pair, kept[:-1], kept[-1]):
                context.events.note(note)
        context.host.tell("pdtrim_recovery_finished", result=tried.result)
        context.spent.save()
        results.append(tried.result)
    layers = {key: module for key, module in tried.modules.items() if isinstance(key, RecoveredPart)}
    return Recovered(plan, layers, tuple(results))


class _Checked(NamedTuple):
    """The texts to check with, what pairs are checked in, and the divergences of the pair on the texts, where they are known."""

    texts: Sequence[Item]
    cache: PrefixCache
    divergences: Divergences | None


class _Tried(NamedTuple):
    """The modules of a pair, its divergences on the texts to check with, and how the last recovery came out.

    There is no result of an optional recovery that had nothing to change.
    """

    modules: Modules
    divergences: Divergences | None
    result: RecoveryResult | None


def _one(context: RunContext, inputs: RunInputs, number: int, pair: Walked, check: _Checked) -> _Tried:
    """Let a recovery of the recipe change a pair; it is put back where the pair came no nearer to the dense model."""
    started, start, losses = time.perf_counter(), dict(pair.modules), list[float]()
    recovery, count = inputs.recoveries[number], len(inputs.recoveries)
    label, name = context.host.label_of(recovery), f"{number}-{recovery.name}"

    def reached(share: float) -> None:
        done = 1.0 if share > 1 else share if share >= 0 else 0.0
        context.host.tell("pdtrim_recovery_advanced", name=recovery.name, number=number + 1, count=count, share=done)

    work = RecoveryContext(
        pair,
        check.texts,
        context.rng(f"recovery {name}"),
        context.folder.path / WORK / name,
        context.events.note,
        losses.append,
        reached,
        opening_tokens(inputs.model.tokenizer, inputs.calibration.items, inputs.model.vocabulary),
        check.cache,
    )
    reached(0.0)
    before = _divergences(work) if check.divergences is None else check.divergences
    try:
        with blame(label):
            recovery.recover(work)
    except PluginError:
        raise
    except PdtrimError as error:
        if not recovery.optional:
            raise
        context.events.note(f"{label}: {error}: it is left out")
        return _Tried(start, before, None)
    check_change(pair, start, recovery.contract, label)
    changed = _changed(pair, start)
    if recovery.optional and not any(changed.values()):
        return _Tried(start, before, None)
    after = _divergences(work)
    nearer = _mean(after).value < _mean(before).value
    if not nearer:
        what = "changed nothing" if not any(changed.values()) else "brought the pair no nearer to the dense model"
        context.events.note(
            f"{label} {what} (KL {_mean(before).value:.4f} before, {_mean(after).value:.4f} after, on {len(check.texts)} texts): "
            "its weights are left out"
        )
    result = RecoveryResult(
        name=recovery.name,
        before=_bounded(_mean(before)),
        after=_bounded(_mean(after)),
        texts=len(pair.items),
        tokens=sum(len(item.prompt_of(0)) + len(item.choices[0]) for item in pair.items),
        seconds=round(time.perf_counter() - started, 2),
        kept=nearer,
        changed=changed,
        losses=_thinned(losses),
        by_position_before=_by_position(before),
        by_position_after=_by_position(after),
    )
    return _Tried(dict(pair.modules), after, result) if nearer else _Tried(start, before, result)


def _divergences(work: RecoveryContext) -> Divergences:
    """Return KL(dense || pair) at each token of each text to check with."""
    return [[token.divergence for token in tokens] for tokens in work.staged.compared(work.check)]


def _mean(divergences: Sequence[Sequence[float]]) -> Metric:
    return ratio([math.fsum(own) for own in divergences], [len(own) for own in divergences], higher_is_better=False)


def _bounded(metric: Metric) -> Metric:
    """Return a figure as an outcome can hold it: what a broken pair is from the dense model may be beyond all bounds."""
    return replace(metric, value=_number(metric.value), error=None if metric.error is None else _number(metric.error))


def _number(value: float) -> float:
    return value if abs(value) <= LARGEST else LARGEST


def _by_position(divergences: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean at each place behind the prompt that every text has."""
    shortest = min(map(len, divergences))
    return tuple(_number(math.fsum(own[place] for own in divergences) / len(divergences)) for place in range(shortest))


def _thinned(losses: Sequence[float]) -> tuple[float, ...]:
    """Return means of neighbouring losses, so many as an outcome may have."""
    step = math.ceil(len(losses) / MOST_LOSSES) or 1
    groups = [losses[start : start + step] for start in range(0, len(losses), step)]
    return tuple(_number(math.fsum(group) / len(group)) for group in groups)


def _changed(pair: Walked, start: Modules) -> dict[str, int]:
    """Return how many weights of each stage are not what they were, the numbers of a table among them."""
    found: dict[str, int] = {}
    for stage in STAGES:
        before, now = (recovered_tensors(pair, modules, stage) for modules in (start, pair.modules))
        found[stage] = sum(weight.numel() for name, weight in now.items() if before.get(name) is not weight)
    return found


def _key(context: RunContext, inputs: RunInputs, found: FoundRemoval, plan: Plan) -> str:
    """Return a hash of all that decides what recovery makes of a plan."""
    recipe, host, model = context.recipe, context.host, inputs.model
    parts = [[recovery.name, host.source_of(recovery), recovery.model_dump(mode="json")] for recovery in inputs.recoveries]
    what = [
        plan_to_json(plan),
        model.exact_fingerprint,
        repr(model.layout),
        str(model.dtype),
        found.bench.modules_digest,
        recipe.settings.recovery_data.model_dump(mode="json"),
        [recipe.settings.seed, recipe.settings.evaluation.first_token, inputs.calibration.digest],
        parts,
        engine(),
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _known(key: str, plan: Plan, model: BlockModel, modules: Modules, folder: Path) -> Recovered | None:
    """Return what the same recoveries made in this folder before; None where they made nothing, or it is damaged."""
    if not (folder / RECORD).is_file():
        return None
    try:
        record = read_json(folder / RECORD)
        if record["key"] != key or record["digest"] != digest_of(folder):
            return None
        results = TypeAdapter(tuple[RecoveryResult, ...]).validate_python(record["results"])
        return Recovered(plan, load_recovered(plan, model, modules, folder), results, record["digest"])
    except (UnreadableError, PdtrimError, ValidationError, KeyError, TypeError):
        return None
