"""The outcome of a run, put together from what its steps found."""

from __future__ import annotations

from typing import Any

from pdtrim_core.execution.staged_model import Replacements
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import added_biases
from pdtrim_core.pipeline.finished import Finished
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.results.fidelity import Fidelity
from pdtrim_core.results.outcome import Cost, Outcome, peak_memory


def assemble_outcome(context: RunContext, inputs: RunInputs, done: Finished, *, fidelity: Fidelity | None = None) -> Outcome:
    """Return what a run did."""
    model, recipe, events = inputs.model, context.recipe, context.events
    found, plan, recovered, rows = done
    return Outcome(
        model=model.name,
        license=model.license,
        block_count=model.block_count,
        objective=recipe.objective.name,
        saved_plan=None if found.replaced is not None else _saved(context, model, plan, recovered.digest),
        block_scores=found.scores.block,
        pair_scores=found.scores.pair,
        sets=found.sets,
        rows=rows,
        gains=found.bench.gains(found.plan, plan),
        merges=found.merge_results(plan),
        costs=costs_of(model, plan, found.modules, found.replaced),
        norms=found.scores.norms,
        search=tuple(events.search),
        fidelity=fidelity,
        recovery=recovered.results,
        notes=tuple(events.notes),
        seconds=dict(events.seconds),
        peak_memory=peak_memory(),
        candidates=vars(found.bench.ledger.tally),
        environment=found.environment,
        recipe=recipe.to_data(),
    )


def costs_of(model: BlockModel, plan: Plan, modules: Replacements, replaced: BlockModel | None = None) -> tuple[Cost, ...]:
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


def _saved(context: RunContext, model: BlockModel, plan: Plan, recovered: str) -> dict[str, Any]:
    """Return the plan as an outcome has it."""
    first_token = context.recipe.settings.evaluation.first_token
    return SavedPlan(plan, model.name, model.fingerprint, model.block_count, first_token, recovered).to_data()
