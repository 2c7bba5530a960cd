"""What a run works on, opened and checked before anything is measured: the model, the items, the budget, the environment."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import torch

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.layer_kinds import Recovery
from pdtrim_core.api.recovery_facts import RecoveryFacts
from pdtrim_core.data.items import Calibration
from pdtrim_core.errors import RecipeError, blame
from pdtrim_core.execution.threads import fitting_threads
from pdtrim_core.host.sources import changes
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.budget import check_pruner, check_stages, removed_blocks
from pdtrim_core.pipeline.check_formats import check_formats
from pdtrim_core.pipeline.check_offloaded import check_offloaded
from pdtrim_core.pipeline.check_recoveries import fitting_recoveries
from pdtrim_core.pipeline.dense_beginnings import answer_length, with_beginnings
from pdtrim_core.pipeline.elsewhere_opened import Opening
from pdtrim_core.pipeline.export import export_problems, facts_of
from pdtrim_core.pipeline.prepare import draw, open_model
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_keys import keys_of, sources_of
from pdtrim_core.pipeline.select_kv import check_selector
from pdtrim_core.plan.elements import PARTS
from pdtrim_core.results.outcome import Environment, machine, versions

DECIDE_NOTHING = ("scorer ", "searcher ", "splitter ")
"""Kinds whose code decides which plans are measured, and nothing about a plan's value."""


@dataclass(frozen=True)
class RunInputs:
    """The dense model, the items, how many blocks decode loses, where the run runs, and the recoveries that fit the model."""

    model: BlockModel
    calibration: Calibration
    blocks: int
    environment: Environment
    recoveries: tuple[Recovery, ...] = ()


def prepare(context: RunContext) -> RunInputs:
    """Open the model and draw the items.

    Raises `PdtrimError` where the folder holds measurements of other weights or items, and where it is certain already that
    the recipe's pruner cannot keep to the budget, that its searcher or splitter cannot do what their options demand, that
    its recoveries could not do their work, that layers cannot have its formats, that its selector of K/V could not do its work on
    these items, or that one of its exporters could not write what the run makes.
    """
    recipe, keys, evaluation = context.recipe, keys_of(context.recipe), context.recipe.settings.evaluation
    with context.events.step("open the model"):
        with blame(context.host.label_of(recipe.model)):
            first_time = recipe.model.first_time()
        if first_time:
            context.events.preview(first_time)
        elsewhere = None if context.executor is None else Opening(context.executor, recipe)
        model = context.cache.latest("model", keys.model, lambda: open_model(recipe.model, context.host))
        blocks = removed_blocks(recipe, model.sizes, model.name)
        check_pruner(recipe, model.sizes, model.name, model.config.model_type)
        check_stages(recipe, model.sizes, model.name)
        if recipe.drops_parts:
            model.check_parts(PARTS)
        fitting = fitting_recoveries(recipe, RecoveryFacts(model.name, model.config.model_type, model.layout), model.positions)
        for line in fitting.left_out:
            context.events.note(line)
        check_formats(recipe, model.model, model.layout, name=model.name, family=model.config.model_type)
        check_offloaded(recipe, fitting.recoveries, model)
        problems = export_problems(recipe.exporters, context.host, facts_of(recipe, model))
        if problems:
            raise RecipeError(str(recipe.out), problems)
        model.compiles = evaluation.compile
        if elsewhere is not None:
            elsewhere.check(model)
        elif evaluation.threads is None:
            # Put back by the context around the run.
            torch.set_num_threads(fitting_threads(model, evaluation.batch_tokens))
    with context.events.step("calibrate"):
        calibration = context.cache.latest("calibration", keys.calibration, lambda: draw(recipe, context.host, model))
        wanted, got = recipe.calibration.samples, len(calibration.items)
        if got < wanted:
            context.events.note(f"calibration '{recipe.calibration.name}' gave {got} of the {wanted} samples requested")
        check_selector(recipe, model, calibration)
        environment = _environment(context, model, calibration)
        context.folder.check_same({"weights": environment.weights, "data": environment.data})
        _note_changes(context, environment)
    if answer_length(recipe.objective, context.host):
        # Only of those that measure: the search need not wait for the others.
        with context.events.step("let the dense model answer"):
            items = with_beginnings(context, model, "calibration", calibration.items)
        calibration = replace(calibration, items=items)
    return RunInputs(model, calibration, blocks, environment, fitting.recoveries)


def cost_model(context: RunContext, model: BlockModel) -> CostModel:
    """Return what plans cost on a model, as the recipe lets prefill be truncated or not."""
    return CostModel(model.block_count, model.sizes, context.recipe.settings.evaluation.truncates_prefill)


def with_training(context: RunContext, environment: Environment, training: str, *, decides: bool) -> Environment:
    """Return the environment with a hash of the training tokens, and write it into the folder of the run.

    `decides` tells that something trained is going to be measured. Raises `PdtrimError` where it is, and the folder holds
    measurements made with other tokens.
    """
    if decides:
        context.folder.check_same({"training": training})
    environment = replace(environment, training=training)
    write_environment(context, environment)
    return environment


def write_environment(context: RunContext, environment: Environment) -> None:
    """Write the environment into the folder of the run, so that one that goes on can tell whether it is the same."""
    context.folder.write("environment.json", json.dumps(vars(environment), indent=1) + "\n")


def _note_changes(context: RunContext, environment: Environment) -> None:
    """Say what is measured again because other code would measure it now."""
    if not context.folder.has_measurements:
        return
    before = context.folder.sources
    if before and changes(before, environment.sources):
        context.spent.forget_before()
    decisive = {name: code for name, code in environment.sources.items() if not name.startswith(DECIDE_NOTHING)}
    changed = changes(before, decisive) if before else ["an earlier version of pdtrim-core measured them"]
    if changed:
        context.events.note(f"what depends on it is measured again: {'; '.join(changed)}")


def _environment(context: RunContext, model: BlockModel, calibration: Calibration) -> Environment:
    recipe_text = json.dumps(context.recipe.to_data(), sort_keys=True)
    sources = tuple({origin.source for origin in context.host.origins if origin.version})
    return Environment(
        versions=versions(sources),
        machine=machine(),
        threads=torch.get_num_threads(),
        device=str(model.device),
        weights=model.fingerprint,
        data=calibration.digest,
        recipe=hashlib.sha256(recipe_text.encode()).hexdigest(),
        sources={**sources_of(context.recipe), "the model": model.exact_fingerprint[:12]},
    )
