"""A run, step by step: from a recipe to an outcome."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.items import Calibration
from pdtrim_core.execution.threads import fitting_threads, threads
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import added_biases
from pdtrim_core.pipeline.budget import removed_blocks
from pdtrim_core.pipeline.events import RunEvents
from pdtrim_core.pipeline.export import write_exports
from pdtrim_core.pipeline.measurements import Bench, rows_of
from pdtrim_core.pipeline.merge_pairs import Merges
from pdtrim_core.pipeline.prepare import draw, open_model, score, threshold_of
from pdtrim_core.pipeline.prune import Pruning, prune
from pdtrim_core.pipeline.run_cache import RunCache, keys_of
from pdtrim_core.plan.elements import Merge, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Cost, Environment, Outcome, Sets, machine, peak_memory, versions
from pdtrim_core.results.run_folder import RunFolder, open_run_folder
from pdtrim_core.search.space import TwoSets, search_space


def run(recipe: Recipe, host: PluginHost | None = None, *, fresh: bool = False, shared: RunCache | None = None) -> Outcome:
    """Carry out a recipe and return what came out; the run folder has it all.

    `host` has the plugins, which are those that the recipe was made with unless others are given.

    An interrupted run of the same recipe in the same folder goes on where it stopped, unless `fresh`. Runs that are given
    the same `shared` do together what they have in common. Raises `PdtrimError` for whatever the user can mend; what was
    measured until then stays in the journal.
    """
    evaluation = recipe.settings.evaluation
    shared, host = shared or RunCache(), host or recipe.host
    with (
        open_run_folder(recipe.out, recipe.to_data(), fresh=fresh) as folder,
        threads(evaluation.threads),
        RunEvents(host) as log,
    ):
        host.tell("pdtrim_run_started", recipe=recipe.to_data(), out=recipe.out)
        start = prepare(recipe, host, folder, log, shared=shared)
        start, bench, found = find(recipe, start, shared, host=host, folder=folder, log=log)
        plan = split(recipe, start, bench, found, log)
        with log.step("evaluate", about=bench.measurements(3 if start.replaced is None else 2)):
            rows = rows_of(bench, found, plan, start.replaced)
        with log.step("write"):
            outcome = Outcome(
                model=start.model.name,
                license=start.model.license,
                block_count=start.model.block_count,
                objective=recipe.objective.name,
                saved_plan=_saved(recipe, start, plan),
                block_scores=start.block_scores,
                pair_scores=start.space.scores.pair,
                sets=start.sets,
                rows=rows,
                gains=bench.gains(found, plan),
                merges=start.merges.results(plan),
                costs=costs_of(start.model, plan, start.merges.modules, start.replaced),
                norms=start.space.scores.norms,
                search=tuple(log.search),
                notes=tuple(log.notes),
                seconds=dict(log.seconds),
                peak_memory=peak_memory(),
                candidates=vars(bench.ledger.tally),
                environment=start.environment,
                recipe=recipe.to_data(),
            )
            start.merges.save(plan, start.model, recipe.out)
            export(recipe, host, outcome, start.model)
            folder.write("outcome.json", outcome.to_json())
        host.tell("pdtrim_run_finished", outcome=outcome)
        return outcome


@dataclass(frozen=True)
class Start:
    """What is known before anything is measured: the model, the items, and what a search may choose from."""

    model: BlockModel
    calibration: Calibration
    environment: Environment
    sets: Sets
    merges: Merges | Pruning
    space: SearchSpace

    @property
    def block_scores(self) -> tuple[float, ...]:
        """One score a block, where a scorer or a pruner gave some."""
        return self.merges.pruned.block_scores if isinstance(self.merges, Pruning) else self.space.scores.block

    @property
    def replaced(self) -> BlockModel | None:
        """The whole other model that a pruner gave; there is then no plan but the dense one."""
        return self.merges.pruned.replaced if isinstance(self.merges, Pruning) else None


def prepare(recipe: Recipe, host: PluginHost, folder: RunFolder, log: RunEvents, *, shared: RunCache) -> Start:
    """Open the model, draw the items, score the blocks.

    Raises `PdtrimError` where the folder holds measurements of other weights or items.
    """
    evaluation, keys = recipe.settings.evaluation, keys_of(recipe)
    with log.step("open the model"):
        model = shared.latest("model", keys.model, lambda: open_model(recipe.model, host))
        count = removed_blocks(recipe, model.sizes, model.name)
        model.compiles = evaluation.compile
        if evaluation.threads is None:
            # Put back by the context around the run.
            torch.set_num_threads(fitting_threads(model, evaluation.batch_tokens))
    with log.step("calibrate"):
        calibration = shared.latest("calibration", keys.calibration, lambda: draw(recipe, host, model))
        wanted, got = recipe.calibration.samples, len(calibration.items)
        if got < wanted:
            log.note(f"calibration '{recipe.calibration.name}' gave {got} of the {wanted} samples asked for")
        environment = _environment(recipe, host, model, calibration)
        folder.check_same({"weights": environment.weights, "data": environment.data})
    if recipe.pruner is not None:
        if not folder.known:
            # Before anything is measured: a pruner's readings are in the journal too, and must not be taken for another model's.
            folder.write("environment.json", json.dumps(vars(environment), indent=1) + "\n")
        with log.step("prune"):
            pruning, space = prune(recipe, host, model, calibration, blocks=count, folder=folder, log=log)
        if pruning.training:
            folder.check_same({"training": pruning.training})
        environment = replace(environment, training=pruning.training)
        folder.write("environment.json", json.dumps(vars(environment), indent=1) + "\n")
        return Start(model, calibration, environment, Sets((), (), (), None), pruning, space)
    with log.step("score the blocks"):
        scores = shared.latest("scores", keys.scores, lambda: score(recipe, host, model, calibration))
        folder.write("scores.json", scores.to_json())
        threshold = threshold_of(recipe, scores)
    with log.step("merge pairs"):
        merges = Merges(recipe, host, model, calibration, scores=scores, count=count, threshold=threshold)
        sets, space = choose(recipe, model, merges, log)
        if merges.modules:
            folder.check_same({"training": merges.digest})
    environment = replace(environment, training=merges.digest)
    folder.write("environment.json", json.dumps(vars(environment), indent=1) + "\n")
    return Start(model, calibration, environment, sets, merges, space)


def choose(recipe: Recipe, model: BlockModel, merges: Merges, log: RunEvents) -> tuple[Sets, SearchSpace]:
    """Choose the two sets, and with them what a search may choose from."""
    sets = merges.choose(log)
    costs = CostModel(model.block_count, model.sizes, recipe.settings.evaluation.truncates_prefill)
    return _told(sets, merges.threshold), search_space(merges.scores, merges.count, sets, costs)


def find(
    recipe: Recipe, start: Start, shared: RunCache, *, host: PluginHost, folder: RunFolder, log: RunEvents
) -> tuple[Start, Bench, Plan]:
    """Search for what decode loses; return with it the bench that measures from there on.

    Where training was put off, the merges of the plan are trained now. Should one be worse than a drop, its blocks become
    drops and the search is done again, over other sets.
    """

    def new_bench() -> Bench:
        with log.step("measure the dense model", about=1):
            bench = Bench(
                recipe, start.model, start.calibration, merges=start.merges, shared=shared, host=host, folder=folder, log=log
            )
            bench.dense()
        return bench

    if isinstance(start.merges, Pruning):
        return start, new_bench(), Plan.unified(start.merges.pruned.removal)
    while True:
        bench = new_bench()
        with log.step("search", about=recipe.searcher.steps(start.space)):
            found = bench.search(start.space)
        if not start.merges.put_off:
            return start, bench, found
        with log.step("merge the chosen pairs"):
            if start.merges.train_chosen(found, log):
                return start, new_bench(), found
            sets, space = choose(recipe, start.model, start.merges, log)
            start = replace(start, sets=sets, space=space)


def split(recipe: Recipe, start: Start, bench: Bench, found: Plan, log: RunEvents) -> Plan:
    """Let the splitter decide what prefill keeps; a replaced model has nothing to split."""
    if start.replaced is not None:
        return found
    with log.step("split the stages", about=recipe.splitter.steps(found)):
        return bench.split(found, start.space.costs)


def costs_of(
    model: BlockModel, plan: Plan, modules: Mapping[Merge | Shrink, nn.Module], replaced: BlockModel | None = None
) -> tuple[Cost, ...]:
    """Return what the plan with its modules, or the model that replaced the dense one, saves beside the dense model."""
    before, after, dense = model.sizes, (replaced or model).sizes, Plan()
    in_prefill, in_decode = (added_biases(removal, model, modules) for removal in (plan.prefill, plan.decode))
    traffic = after.decode_bytes(plan) + in_decode * after.bytes_per_number
    return (
        Cost("parameters of prefill", "weights", before.parameters, after.kept_parameters(plan, "prefill") + in_prefill),
        Cost("parameters of decode", "weights", before.parameters, after.kept_parameters(plan, "decode") + in_decode),
        Cost("prefill work for 1024 tokens", "FLOPs", before.prefill_flops(dense), after.prefill_flops(plan)),
        Cost("decode weight traffic", "bytes a token", before.decode_bytes(dense), traffic),
        Cost("K/V shipped to decode", "bytes a prompt token", before.kv_bytes(dense), after.kv_bytes(plan)),
    )


def export(recipe: Recipe, host: PluginHost, outcome: Outcome, model: BlockModel) -> None:
    """Let the exporters of a recipe write. Raises `PluginError` for one that writes outside the run folder."""
    for _ in write_exports(recipe.exporters, host, outcome, model, recipe.out):
        pass


def _told(sets: TwoSets, threshold: float) -> Sets:
    """Return the two sets as an outcome has them; no pairs, no threshold."""
    pairs = tuple((pair.blocks[0], pair.blocks[1]) for pair in sets.pairs)
    return Sets(sets.initial, pairs, sets.drops, threshold if math.isfinite(threshold) else None)


def _saved(recipe: Recipe, start: Start, plan: Plan) -> dict[str, Any] | None:
    """Return the plan as an outcome has it; none where a pruner replaced the model."""
    if start.replaced is not None:
        return None
    model, first_token = start.model, recipe.settings.evaluation.first_token
    return SavedPlan(plan, model.name, model.fingerprint, model.block_count, first_token).to_data()


def _environment(recipe: Recipe, host: PluginHost, model: BlockModel, calibration: Calibration) -> Environment:
    recipe_text = json.dumps(recipe.to_data(), sort_keys=True)
    sources = tuple({origin.source for origin in host.origins if origin.version})
    return Environment(
        versions=versions(sources),
        machine=machine(),
        threads=torch.get_num_threads(),
        device=str(model.device),
        weights=model.fingerprint,
        data=calibration.digest,
        recipe=hashlib.sha256(recipe_text.encode()).hexdigest(),
    )
