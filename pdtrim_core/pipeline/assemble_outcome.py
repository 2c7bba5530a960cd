"""The outcome of a run, put together from what its steps found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pdtrim_core.execution.staged_model import Replacements
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import added_biases
from pdtrim_core.pipeline.finished import Finished
from pdtrim_core.pipeline.quantize import Quantized
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.results.fidelity import Fidelity
from pdtrim_core.results.outcome import Cost, Outcome, peak_memory

SHIPPED_TOKENS = (128, 1024, 8192)
"""The lengths of prompts for which a run says what K/V it ships, where that is not the same a token for all."""


def assemble_outcome(context: RunContext, inputs: RunInputs, done: Finished, *, fidelity: Fidelity | None = None) -> Outcome:
    """Return what a run did."""
    model, recipe, events = inputs.model, context.recipe, context.events
    found, plan, recovered, rows, quantized = done
    return Outcome(
        model=model.name,
        license=model.license,
        block_count=model.block_count,
        objective=recipe.objective.name,
        saved_plan=None if found.replaced is not None else _saved(context, model, plan, recovered.digest, quantized.formats),
        block_scores=found.scores.block,
        pair_scores=found.scores.pair,
        sets=found.sets,
        rows=rows,
        gains=found.bench.gains(found.plan, plan),
        merges=found.merge_results(plan),
        costs=costs_of(model, plan, found.modules, found.replaced, quantized),
        norms=found.scores.norms,
        search=tuple(events.search),
        fidelity=fidelity,
        recovery=recovered.results,
        notes=tuple(events.notes),
        seconds=context.spent.seconds(),
        peak_memory=peak_memory(),
        candidates=context.spent.candidates(),
        environment=found.environment,
        recipe=recipe.to_data(),
    )


def costs_of(
    model: BlockModel,
    plan: Plan,
    modules: Replacements,
    replaced: BlockModel | None = None,
    quantized: Quantized | None = None,
) -> tuple[Cost, ...]:
    """Return what the plan with its modules, or the model that replaced the dense one, saves beside the dense model.

    Where K/V are selected, what a token costs depends on how long its prompt is: a cost counts for 1024 tokens unless it says so.
    Where a stage has a number format of its own, all bytes are those of the checkpoints: the model may be open in another format.
    """
    quantized = quantized or Quantized()
    before, after, dense = model.sizes, (replaced or model).sizes, Plan()
    if quantized.formats is not None:
        before = after = replace(model.sizes, bytes_per_number=model.stored_dtype().itemsize)
    in_prefill, in_decode = (added_biases(removal, model, modules) for removal in (plan.prefill, plan.decode))
    kept: dict[Stage, int] = {
        "prefill": after.kept_parameters(plan, "prefill") + in_prefill,
        "decode": after.kept_parameters(plan, "decode") + in_decode,
    }
    each = after.bytes_per_number
    spared = {stage: quantized.numbers[stage] * each - quantized.stored_bytes[stage] for stage in quantized.numbers}
    traffic = after.decode_bytes(plan) + in_decode * each - spared.get("decode", 0)
    weights = [
        Cost(f"weights of {stage}", "bytes", before.parameters * each, count * each - spared.get(stage, 0))
        for stage, count in kept.items()
        if quantized.formats is not None
    ]
    by_length = [
        Cost(
            f"K/V shipped for {tokens:,} tokens",
            "bytes",
            before.kv_bytes(dense, tokens) * tokens,
            after.kv_bytes(plan, tokens) * tokens,
        )
        for tokens in SHIPPED_TOKENS
        if plan.selections
    ]
    return (
        Cost("parameters of prefill", "weights", before.parameters, kept["prefill"]),
        Cost("parameters of decode", "weights", before.parameters, kept["decode"]),
        *weights,
        Cost("prefill work for 1024 tokens", "FLOPs", before.prefill_flops(dense), after.prefill_flops(plan)),
        Cost("decode weight traffic", "bytes a token", before.decode_bytes(dense), traffic),
        Cost("K/V shipped to decode", "bytes a prompt token", before.kv_bytes(dense), after.kv_bytes(plan)),
        *by_length,
    )


def _saved(context: RunContext, model: BlockModel, plan: Plan, recovered: str, formats: Formats | None) -> dict[str, Any]:
    """Return the plan as an outcome has it."""
    first_token = context.recipe.settings.evaluation.first_token
    return SavedPlan(plan, model.name, model.fingerprint, model.block_count, first_token, recovered, formats).to_data()
