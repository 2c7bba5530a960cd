"""Finding decode's removal by another method: run the pruner, check its result, and build the plan for the splitter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pdtrim_core.api.plan_kinds import Pruner
from pdtrim_core.api.prune_context import PruneContext, Train
from pdtrim_core.api.pruned import Pruned
from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import PlanError, PluginError, blame
from pdtrim_core.execution.prefix_cache import ExecutionOptions
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import MODULES, REPLACED, added_biases, save_modules, save_replaced
from pdtrim_core.pipeline.budget import removed_parameters
from pdtrim_core.pipeline.found_removal import FoundRemoval
from pdtrim_core.pipeline.losses import losses_of
from pdtrim_core.pipeline.measured_model import ModuleSet
from pdtrim_core.pipeline.measurements import open_bench
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs, cost_model, with_training, write_environment
from pdtrim_core.pipeline.run_keys import losses_key
from pdtrim_core.pipeline.train_merges import Training
from pdtrim_core.pipeline.training_tokens import TrainingTokens
from pdtrim_core.pipeline.written_texts import WrittenTexts
from pdtrim_core.plan.elements import Merge, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import MergeResult, Sets
from pdtrim_core.search.driver import Ledger


@dataclass(frozen=True, kw_only=True)
class PrunedRemoval(FoundRemoval):
    """What a pruner found; it made the modules itself, or let the run train merges."""

    dense: BlockModel
    training: Training

    def merge_results(self, plan: Plan) -> tuple[MergeResult, ...]:
        """Return how the merges that the recipe's distiller trained came out; others have no figures."""
        return self.training.results(plan, kept=self.modules, score_of=lambda _: None)

    def save(self, plan: Plan, out: Path) -> None:
        """Write the modules of a plan, or a model that replaced the dense one."""
        save_modules(plan, self.modules, out / MODULES)
        if self.replaced is not None:
            save_replaced(self.replaced, self.dense, out / REPLACED)


def prune(context: RunContext, inputs: RunInputs) -> PrunedRemoval:
    """Let the recipe's pruner find what decode loses."""
    recipe, model = context.recipe, inputs.model
    pruner = recipe.pruner
    assert pruner is not None
    if not context.folder.has_measurements:
        # Before anything is measured: a pruner's readings are in the journal too, and must not be taken for another model's.
        write_environment(context, inputs.environment)
    training, texts = Training(context, inputs, otherwise="use another pruner"), _Texts(context, inputs)
    wanted = removed_parameters(recipe, model.sizes, inputs.blocks)
    with context.events.step("prune"):
        pruned = _ask(pruner, _context_of(context, inputs, wanted, training, texts), context.host.label_of(pruner))
        for line in _notes_on(pruned, context.host.label_of(pruner), model, wanted):
            context.events.note(line)
    environment = with_training(context, inputs.environment, training.digest, decides=bool(training.digest))
    learned = training.digest + texts.digest
    digest = digest_of(pruner, context.host.source_of(pruner), budget=(inputs.blocks, wanted), training=learned)
    return PrunedRemoval(
        plan=Plan.unified(pruned.removal),
        costs=cost_model(context, model),
        bench=open_bench(context, inputs, ModuleSet(pruned.modules, digest)),
        modules=pruned.modules,
        environment=environment,
        scores=Scores(pruned.block_scores),
        sets=Sets((), (), (), None),
        replaced=pruned.replaced,
        dense=model,
        training=training,
    )


def digest_of(pruner: Pruner, source: str, *, budget: tuple[int, int], training: str) -> str:
    """Return a hash of a pruner with its code and options, its budget and what it trained on, which decide its modules."""
    what = [pruner.name, source, pruner.model_dump(mode="json"), budget, training]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class _Texts:
    """The texts that the dense model writes for a pruner, and a hash of those that it took."""

    def __init__(self, context: RunContext, inputs: RunInputs) -> None:
        self._written = WrittenTexts(TrainingTokens(context, inputs), context.recipe.settings.recovery_data)
        self._taken = hashlib.sha256()
        self._any = False

    @property
    def digest(self) -> str:
        """A hash of the texts that were taken; empty where none was."""
        return self._taken.hexdigest() if self._any else ""

    def write(self, count: int) -> Iterator[Sequence[int]]:
        """Yield so many texts and more."""
        yield from self._told(self._written.texts(count))

    def answer(self, count: int) -> Iterator[Sequence[int]]:
        """Yield so many prompts with their answers, or as many as there are."""
        yield from self._told(self._written.answered(count))

    def _told(self, texts: Iterable[Sequence[int]]) -> Iterator[Sequence[int]]:
        for text in texts:
            self._taken.update(json.dumps(text).encode())
            self._any = True
            yield text


def _context_of(context: RunContext, inputs: RunInputs, parameters: int, training: Training, texts: _Texts) -> PruneContext:
    """Return what the pruner is given."""
    evaluation = context.recipe.settings.evaluation

    def ledger(part: str, measurement: Measurement) -> Ledger:
        # The score of a loss is made up, so no bar may show the best of them.
        key, count = losses_key(context.recipe, inputs.model.exact_fingerprint), len(measurement.items)
        return context.ledger(part, measurement, by=lambda _plan: key, items=count, has_best=False)

    losses = losses_of(
        inputs.model,
        ExecutionOptions(batch_tokens=evaluation.batch_tokens, budget=evaluation.cache_budget),
        note=context.events.note,
        ledger=ledger,
    )
    return PruneContext(
        inputs.model,
        [item.tokens for item in inputs.calibration.items],
        blocks=inputs.blocks,
        parameters=parameters,
        rng=context.rng("pruner"),
        batch_tokens=evaluation.batch_tokens,
        note=context.events.note,
        losses=losses,
        train=_train(context, training),
        decode_from=[
            max(0, len(item.prompt_of(item.answer)) - (evaluation.first_token == "decode")) for item in inputs.calibration.items
        ],
        write=texts.write,
        answer=texts.answer,
        reached=partial(_tell, context),
    )


def _tell(context: RunContext, share: float) -> None:
    """Tell how far the recipe's pruner is."""
    pruner = context.recipe.pruner
    assert pruner is not None
    context.host.tell("pdtrim_work_advanced", what=pruner.name, number=0, count=0, share=min(1.0, max(0.0, share)))


def _train(context: RunContext, training: Training) -> Train:
    """Return the function with which a pruner lets the run train a merge."""

    def train(merge: Merge) -> tuple[Merge, nn.Module]:
        merge = training.merge_of(merge)
        record = training.train(merge)
        if not record.moved:
            context.events.note(f"training changed no weight of merge {merge}: train it for longer, or with a larger lr")
        elif not record.worthwhile:
            why = "is no nearer to the dense model than keeping only its first or only its last block"
            context.events.note(f"merge {merge} {why}: train it for longer")
        return merge, training.modules[merge]

    return train


def _ask(pruner: Pruner, context: PruneContext, label: str) -> Pruned:
    """Return the result of a pruner, checked."""
    with blame(label):
        pruned = pruner.prune(context)
    _check(pruned, pruner, context.model, label)
    return pruned


def _notes_on(pruned: Pruned, label: str, model: BlockModel, wanted: int) -> Iterator[str]:
    """Yield the notes of a run on a pruner's result."""
    if pruned.replaced is not None:
        yield (
            f"{label} replaced the whole model: it cannot be written as a removal of blocks or channels, so there is no plan for "
            "two stages and no plan.json, and prefill and decode would both run it ('unified')"
        )
    kept = pruned.kept_parameters(model.sizes) + added_biases(pruned.removal, model, pruned.modules)
    yield (
        f"{label} removed {100 * (1 - kept / model.sizes.parameters):.2f} % of the parameters; "
        f"{100 * wanted / model.sizes.parameters:.2f} % were asked for"
    )


def _check(pruned: Pruned, pruner: Pruner, model: BlockModel, label: str) -> None:
    """Raise `PluginError` for a removal that does not fit the model, and for a replaced model where none was to come."""
    if not isinstance(pruned, Pruned):
        raise PluginError(f"{label} returned {type(pruned).__name__} where Pruned is expected")
    if (pruned.replaced is not None) != pruner.replaces_model:
        found = "no replaced model" if pruned.replaced is None else "a replaced model"
        raise PluginError(f"{label} returned {found}, but its class says replaces_model = {pruner.replaces_model}")
    if pruned.replaced is not None:
        _check_replaced(pruned, model, label)
    missing = [e for e in pruned.removal if isinstance(e, Merge) and e not in pruned.modules]
    if missing:
        raise PluginError(f"{label} merged {missing[0]}, but gave no merged block for it")
    problems = Scores(pruned.block_scores).problems(model.block_count) if pruned.block_scores else []
    if problems:
        raise PluginError(f"{label} gave {problems[0]}")
    try:
        Plan.unified(pruned.removal).check_fits(model.block_count)
        for block in {element.block for element in pruned.removal if isinstance(element, Shrink)}:
            model.narrowed(pruned.removal.shrinks_at(block), pruned.modules)
    except PlanError as error:
        raise PluginError(f"{label} returned a removal that does not fit: {error}") from None


def _check_replaced(pruned: Pruned, model: BlockModel, label: str) -> None:
    """Raise `PluginError` for a replaced model that is not whole, or not all that was found."""
    replaced = pruned.replaced
    assert replaced is not None
    if len(pruned.removal) or pruned.modules:
        raise PluginError(f"{label} returned a replaced model together with a removal: return one of them")
    if replaced.config.vocab_size != model.config.vocab_size:
        raise PluginError(f"{label} returned a model of {replaced.config.vocab_size} tokens for one of {model.config.vocab_size}")
    for name, parameter in replaced.model.named_parameters():
        if not torch.isfinite(parameter.detach().sum(dtype=torch.float64)):
            raise PluginError(f"{label} returned a model whose weight {name} holds a NaN or an infinity")
