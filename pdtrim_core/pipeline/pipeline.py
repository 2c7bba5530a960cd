"""A run, step by step: from a recipe to an outcome."""

from __future__ import annotations

from pdtrim_core.errors import PdtrimError
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline import search_and_split
from pdtrim_core.pipeline.assemble_outcome import assemble_outcome
from pdtrim_core.pipeline.dense_comparison import compare_with_dense, variants_at_end
from pdtrim_core.pipeline.executor import Executor
from pdtrim_core.pipeline.export import remarks_on, write_exports
from pdtrim_core.pipeline.finished import Finished
from pdtrim_core.pipeline.found_removal import FoundRemoval
from pdtrim_core.pipeline.kept_outcome import kept_outcome, made_from, written_files
from pdtrim_core.pipeline.measurements import rows_of
from pdtrim_core.pipeline.progress_lines import Progress, telling
from pdtrim_core.pipeline.prune import prune
from pdtrim_core.pipeline.quantize import Quantized, quantize
from pdtrim_core.pipeline.recover import Recovered, check_texts, recover
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.pipeline.run_context import RunContext, open_run_context
from pdtrim_core.pipeline.run_inputs import RunInputs, prepare
from pdtrim_core.pipeline.search_removal import search_removal
from pdtrim_core.pipeline.select_kv import select_kv
from pdtrim_core.pipeline.steps import steps_of
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.missing import check_there
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.fidelity import Fidelity
from pdtrim_core.results.outcome import Outcome, Row
from pdtrim_core.wording import shortened


def run(
    recipe: Recipe,
    host: PluginHost | None = None,
    *,
    fresh: bool = False,
    shared: RunCache | None = None,
    progress: Progress = False,
    executor: Executor | None = None,
) -> Outcome:
    """Carry out a recipe and return what came out; the run folder has it all.

    `host` has the plugins, which are those that the recipe was made with unless others are given. `progress` is a function that
    is given a line whenever a step begins or ends, such as `print`; with True the lines go to stderr. `executor` are workers that
    measure plans (see `pdtrim_core.workers`); with the same number of threads the outcome is the same as without.

    An interrupted run of the same recipe in the same folder goes on where it stopped, and of one that is finished the outcome
    is returned as it is, unless `fresh`. Runs that are given the same `shared` do together what they have in common. Raises
    `PdtrimError` for whatever the user can mend; what was measured until then stays in the journal.
    """
    if not isinstance(recipe, Recipe):
        raise PdtrimError(f"run takes a recipe, not {shortened(repr(recipe))}: Recipe.read(path) reads one from a file")
    check_there(recipe)
    kept = None if fresh else kept_outcome(recipe)
    if kept is not None:
        return kept
    host = host or recipe.host
    with telling(host, progress), open_run_context(recipe, host, fresh=fresh, cache=shared, executor=executor) as context:
        host.tell("pdtrim_run_started", recipe=recipe.to_data(), out=recipe.out, steps=steps_of(recipe))
        inputs = prepare(context)
        made = made_from(recipe)
        inputs = check_texts(context, inputs)
        found = find(context, inputs)
        plan = split(context, found)
        recovered = recover(context, inputs, found, plan)
        modules = {**found.modules, **recovered.layers}
        quantized = quantize(context, inputs.model, plan, modules)
        plan = select_kv(context, inputs.model, inputs.calibration, plan, {**modules, **quantized.layers})
        rows = evaluate(context, found, plan, recovered, quantized)
        done = Finished(found, plan, recovered, rows, quantized)
        fidelity = measure_fidelity(context, inputs, done) if "fidelity" in steps_of(recipe) else None
        outcome, written = write(context, inputs, done, fidelity)
        context.spent.end(made_from=made, files=written)
        host.tell("pdtrim_run_finished", outcome=outcome)
        return outcome


def find(context: RunContext, inputs: RunInputs) -> FoundRemoval:
    """Find what decode loses: with the recipe's pruner, or else by a search."""
    return search_removal(context, inputs) if context.recipe.pruner is None else prune(context, inputs)


def split(context: RunContext, found: FoundRemoval) -> Plan:
    """Let the splitter decide what prefill keeps; a replaced model has nothing to split."""
    if found.replaced is not None:
        return found.plan
    with context.events.step("split the stages", about=search_and_split.expected(context, context.recipe.splitter, found.plan)):
        return search_and_split.split(context, found.bench, found.plan, found.costs)


def evaluate(context: RunContext, found: FoundRemoval, plan: Plan, recovered: Recovered, quantized: Quantized) -> tuple[Row, ...]:
    """Measure the rows of the result table."""
    rows, bare = 3 if found.replaced is None else 2, found.bench.as_pruned()
    staged = bare
    if recovered.layers:
        plans = (plan, Plan.unified(plan.decode))
        staged = staged.of_recovered(recovered.modules(found.costs.block_count), plans, recovered.digest)
    unified = staged
    if quantized.formats is not None:
        # A pair whose stages lose the same is one plan with two formats, so each row has modules of its own.
        digest, one = f"{recovered.digest} formats {quantized.formats.weights}", Plan.unified(plan.decode)
        in_both = quantized.unified(found.costs.block_count, recovered.layers)
        staged = bare.of_recovered({**recovered.layers, **quantized.layers}, [plan], digest)
        unified = bare.of_recovered(in_both, [one], f"{digest} unified")
    with context.events.step("evaluate", about=found.bench.measurements(rows)):
        return rows_of(bare, found.plan, plan, found.replaced, pruned={"unified": unified, "staged": staged})


def measure_fidelity(context: RunContext, inputs: RunInputs, done: Finished) -> Fidelity | None:
    """Measure how near the variants are to the dense model; None, with a note, where that cannot be."""
    with context.events.step("fidelity", about=len(variants_at_end(done))):
        # A result is known by the plan with the files of its modules, so that they must be there.
        done.found.save(done.plan, context.recipe.out)
        return compare_with_dense(context, inputs, done, assemble_outcome(context, inputs, done))


def write(context: RunContext, inputs: RunInputs, done: Finished, fidelity: Fidelity | None) -> tuple[Outcome, dict[str, str]]:
    """Write what the run made into its folder, and let the exporters write; `outcome.json` comes last.

    Returns the outcome, and the stamps of all files.
    """
    recipe = context.recipe
    with context.events.step("write"):
        outcome = assemble_outcome(context, inputs, done, fidelity=fidelity)
        done.found.save(done.plan, recipe.out)
        exported = list(write_exports(recipe.exporters, context.host, outcome, inputs.model, recipe.out))
        if inputs.model.stored_dtype() != inputs.model.dtype:
            for remark in remarks_on(recipe.exporters, context.host, inputs.model):
                context.events.note(remark)
        context.folder.write("outcome.json", outcome.to_json())
    return outcome, written_files(recipe.out, exported)
