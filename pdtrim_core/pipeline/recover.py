"""Recovering a pair: the recipe's recoveries one by one, each kept only where the pair comes nearer to the dense model."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from pdtrim_core.api.kinds import Contract, Recovery
from pdtrim_core.api.recovery_context import RecoveryContext
from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError, PluginError, blame
from pdtrim_core.execution.recovered_weights import (
    RECOVERED,
    STAGES,
    finite,
    load_recovered,
    recovered_tables,
    recovered_weights,
    save_recovered,
)
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.stage_walk import Walked
from pdtrim_core.fidelity.statistics import ratio
from pdtrim_core.files.atomic_files import write_whole, writing
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.host.sources import engine
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.found_removal import FoundRemoval
from pdtrim_core.pipeline.opening_tokens import opening_tokens
from pdtrim_core.pipeline.recovered_layers import alone, digest_of
from pdtrim_core.pipeline.recovery_texts import RecoveryTexts
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.plan import Plan, RecoveredPart
from pdtrim_core.plan.plan_file import plan_to_json
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.task_results import Metric

CHECKED = 16
"""Texts on which a recovery must have made the pair better, and from which none is computed."""
MOST_LOSSES = 500
"""Losses of a training that an outcome has at most."""
RECORD = "recovery.json"
"""The file beside recovered weights that says how they came about."""
WORK = "recovery-work"
"""The folder of a run in which a long training keeps how far it has come."""


@dataclass(frozen=True)
class Recovered:
    """What recovery made of a plan: layers with other weights, a table of first tokens, how each came out, and a hash of all."""

    plan: Plan = field(default_factory=Plan)
    layers: Mapping[RecoveredPart, nn.Module] = field(default_factory=dict)
    results: tuple[RecoveryResult, ...] = ()
    digest: str = ""

    def modules(self, block_count: int) -> dict[RecoveredPart, nn.Module]:
        """Return the layers of the pair, and those of each stage as a model of its own."""
        return {**self.layers, **alone(self.plan, self.layers, block_count)}


def recover(context: RunContext, inputs: RunInputs, found: FoundRemoval, plan: Plan) -> Recovered:
    """Let the recipe's recoveries change the layers of a plan, or read what they made of it in this folder before."""
    recipe, folder = context.recipe, context.folder.path / RECOVERED
    if not recipe.recoveries:
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
        return known


def _recovered(context: RunContext, inputs: RunInputs, found: FoundRemoval, plan: Plan) -> Recovered:
    recipe, texts = context.recipe, RecoveryTexts(context, inputs)
    counts = {recovery: math.ceil(recovery.tokens / texts.text_tokens) for recovery in recipe.recoveries}
    drawn = texts.items(CHECKED + max(counts.values()))
    check, modules = drawn[:CHECKED], dict(found.modules)
    openings = opening_tokens(inputs.model.tokenizer, inputs.calibration.items)
    results = []
    for number, recovery in enumerate(recipe.recoveries):
        training = drawn[CHECKED : CHECKED + counts[recovery]]
        pair = Walked(
            inputs.model,
            plan,
            modules,
            training,
            first_token=recipe.settings.evaluation.first_token,
            batch_tokens=recipe.settings.evaluation.batch_tokens,
        )
        result, modules = _one(context, recovery, pair, check, f"{number}-{recovery.name}", openings=openings)
        results.append(result)
    layers = {key: module for key, module in modules.items() if isinstance(key, RecoveredPart)}
    return Recovered(plan, layers, tuple(results))


def _one(
    context: RunContext, recovery: Recovery, pair: Walked, check: Sequence[Item], name: str, *, openings: Sequence[int]
) -> tuple[RecoveryResult, dict[Any, nn.Module]]:
    """Return how a recovery came out, and the modules of the pair behind it."""
    started, start, losses = time.perf_counter(), dict(pair.modules), list[float]()
    label = context.host.label_of(recovery)
    work = RecoveryContext(
        pair,
        check,
        context.rng(f"recovery {name}"),
        context.folder.path / WORK / name,
        context.events.note,
        losses.append,
        openings,
    )
    before = _divergences(work)
    with blame(label):
        recovery.recover(work)
    check_change(pair, start, recovery.contract, label)
    after = _divergences(work)
    nearer = _mean(after).value < _mean(before).value
    changed = _changed(pair, start)
    if not nearer:
        what = "changed nothing" if not any(changed.values()) else "brought the pair no nearer to the dense model"
        context.events.note(
            f"{label} {what} (KL {_mean(before).value:.4f} before, {_mean(after).value:.4f} after, on {len(check)} texts): its "
            "weights are left out"
        )
    result = RecoveryResult(
        name=recovery.name,
        before=_mean(before),
        after=_mean(after),
        texts=len(pair.items),
        tokens=sum(len(item.prompt_of(0)) + len(item.choices[0]) for item in pair.items),
        seconds=round(time.perf_counter() - started, 2),
        kept=nearer,
        changed=changed,
        losses=_thinned(losses),
        by_position_before=_by_position(before),
        by_position_after=_by_position(after),
    )
    return result, dict(pair.modules) if nearer else start


def _divergences(work: RecoveryContext) -> list[list[float]]:
    """Return KL(dense || pair) at each token of each text to check with."""
    return [[token.divergence for token in tokens] for tokens in work.staged.compared(work.check)]


def _mean(divergences: Sequence[Sequence[float]]) -> Metric:
    return ratio([math.fsum(own) for own in divergences], [len(own) for own in divergences], higher_is_better=False)


def _by_position(divergences: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean at each place behind the prompt that every text has."""
    shortest = min(map(len, divergences))
    return tuple(math.fsum(own[place] for own in divergences) / len(divergences) for place in range(shortest))


def _thinned(losses: Sequence[float]) -> tuple[float, ...]:
    """Return means of neighbouring losses, so many as an outcome may have."""
    step = math.ceil(len(losses) / MOST_LOSSES) or 1
    groups = [losses[start : start + step] for start in range(0, len(losses), step)]
    return tuple(math.fsum(group) / len(group) for group in groups)


def _changed(pair: Walked, start: Modules) -> dict[str, int]:
    """Return how many weights of each stage are not what they were, the numbers of a table among them."""
    found: dict[str, int] = {}
    for stage in STAGES:
        before, now = (_tensors(pair, modules, stage) for modules in (start, pair.modules))
        found[stage] = sum(weight.numel() for name, weight in now.items() if before.get(name) is not weight)
    return found


def _tensors(pair: Walked, modules: Modules, stage: Stage) -> dict[str, Tensor]:
    return {**recovered_weights(pair.plan, pair.model, modules, stage), **recovered_tables(pair.plan, modules, stage)}


def check_change(pair: Walked, start: Modules, contract: Contract, label: str) -> None:
    """Raise `PluginError` where a recovery changed what its contract forbids, or made a weight that is no number."""
    layout = pair.model.layout
    for stage in STAGES:
        weights = recovered_weights(pair.plan, pair.model, pair.modules, stage)
        before = recovered_weights(pair.plan, pair.model, start, stage)
        broken = finite(_tensors(pair, pair.modules, stage))
        if broken is not None:
            raise PluginError(f"{label} made the weight {broken} of {stage} NaN or infinite")
        passed = {str(layer.block) for layer in pair.layers(stage) if layer.state == "kv-only"}
        for name, weight in weights.items():
            if before.get(name) is weight:
                continue
            problem = _problem(name, layout, contract, only_kv=name.partition(".")[0] in passed or ".shadow." in name)
            if problem:
                raise PluginError(f"{label} changed the weight {name} of {stage}, {problem}")


def _problem(name: str, layout: BlockLayout, contract: Contract, *, only_kv: bool) -> str | None:
    """Return what is wrong with a change of a weight; None where it may change."""
    own = name.partition(".")[2].removeprefix("shadow.")
    norms_of_k = tuple(f"{part}." for part in layout.kv[3:])
    of_kv = own.startswith(tuple(f"{part}." for part in layout.kv))
    if own.startswith(norms_of_k) if norms_of_k else False:
        return "a norm of K, which is given heads and not tokens: change the projection in front of it"
    if not layout.kv and not own.startswith(tuple(f"{part}." for part in layout.mlp)):
        return "and this family computes K and V together with Q: of it only projections of the MLP may change"
    if of_kv and contract == "dense-cache" and not only_kv:
        return 'which makes K/V: with contract = "dense-cache" only blocks that prefill passes by may get others'
    if only_kv and not of_kv:
        return "a layer of which only K and V are computed"
    return None


def _key(context: RunContext, inputs: RunInputs, found: FoundRemoval, plan: Plan) -> str:
    """Return a hash of all that decides what recovery makes of a plan."""
    recipe, host, model = context.recipe, context.host, inputs.model
    parts = [[recovery.name, host.source_of(recovery), recovery.model_dump(mode="json")] for recovery in recipe.recoveries]
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


def notes_on(recovered: Recovered) -> Iterator[str]:
    """Yield what a run says of its recoveries."""
    for result in recovered.results:
        if result.kept:
            share = 1 - result.after.value / result.before.value
            yield (
                f"recovery '{result.name}' took {100 * share:.0f} % of the distance to the dense model away: KL "
                f"{result.before.value:.4f} -> {result.after.value:.4f} on {CHECKED} texts, from {result.tokens:,} tokens in "
                f"{result.seconds:.0f} s"
            )
