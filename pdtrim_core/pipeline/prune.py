"""The step of a run that asks another pruner, checks what it gives back, and makes of it what a splitter starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import nn

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.kinds import Pruner
from pdtrim_core.api.prune_context import PruneContext
from pdtrim_core.api.pruned import Pruned
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.items import Calibration
from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import PlanError, PluginError, blame
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import MODULES, REPLACED, added_biases, save_modules, save_replaced
from pdtrim_core.pipeline.losses import losses_of
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.pipeline.train_merges import Training
from pdtrim_core.plan.elements import Merge, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import MergeResult
from pdtrim_core.search.driver import Ledger

if TYPE_CHECKING:
    from pdtrim_core.host.host import PluginHost
    from pdtrim_core.pipeline.events import RunEvents
    from pdtrim_core.recipe.recipe import Recipe
    from pdtrim_core.results.run_folder import RunFolder


class Pruning:
    """What a pruner did in a run; the bench and the outcome ask it as they ask `Merges`."""

    put_off = False

    def __init__(self, pruner: Pruner, pruned: Pruned, training: Training | None = None, *, blocks: int, parameters: int) -> None:
        self._pruner = pruner
        self._training = training
        self._budget = blocks, parameters
        self.pruned = pruned
        self.modules = pruned.modules

    @property
    def digest(self) -> str:
        """A hash of the pruner with its options and budget and of what it trained on, which decide what its modules are."""
        what = [self._pruner.name, self._pruner.model_dump(mode="json"), self._budget, self.training]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @property
    def training(self) -> str:
        """A hash of the training tokens; empty where nothing was trained."""
        return self._training.digest if self._training else ""

    def results(self, plan: Plan) -> tuple[MergeResult, ...]:
        """Return how the merges that the recipe's distiller trained came out; others have no figures."""
        return () if self._training is None else self._training.results(plan, kept=self.modules, score_of=lambda _: None)

    def save(self, plan: Plan, dense: BlockModel, out: Path) -> None:
        """Write the modules of a plan, or a model that replaced the dense one, into the run folder."""
        save_modules(plan, self.modules, out / MODULES)
        if self.pruned.replaced is not None:
            save_replaced(self.pruned.replaced, dense, out / REPLACED)


def prune(  # noqa: PLR0913 - what a run has put together until here
    recipe: Recipe,
    host: PluginHost,
    model: BlockModel,
    calibration: Calibration,
    *,
    blocks: int,
    folder: RunFolder,
    log: RunEvents,
) -> tuple[Pruning, SearchSpace]:
    """Let the recipe's pruner find what decode loses; return it, and the space that a splitter sees."""
    pruner, evaluation = recipe.pruner, recipe.settings.evaluation
    assert pruner is not None
    label = host.label_of(pruner)
    wanted = _parameters(recipe, model, blocks)

    def ledger(part: str, measurement: Measurement) -> Ledger:
        return Ledger(
            measurement,
            known=folder.known.get(part),
            record=lambda plan, reading: folder.note(part, plan, reading),
            # The points of a loss are made up, so no bar may show the best of them.
            notify=lambda candidate: host.tell("pdtrim_candidate_measured", candidate=replace(candidate, best=None)),
        )

    training = Training(recipe, host, model, calibration, otherwise="use another pruner")

    def train(merge: Merge) -> tuple[Merge, nn.Module]:
        merge = training.merge_of(merge)
        if not training.train(merge, log.note).worthwhile:
            log.note(f"merge {merge} is farther from the dense model than its first or its last block alone: train it for longer")
        return merge, training.modules[merge]

    context = PruneContext(
        model,
        [item.tokens for item in calibration.items],
        blocks=blocks,
        parameters=wanted,
        rng=Random(f"{recipe.settings.seed} pruner"),  # noqa: S311 - reproducible draws, nothing secret
        batch_tokens=evaluation.batch_tokens,
        note=log.note,
        losses=losses_of(
            model,
            note=log.note,
            batch_tokens=evaluation.batch_tokens,
            cache_budget=evaluation.cache_budget,
            ledger=ledger,
        ),
        train=train,
    )
    with blame(label):
        pruned = pruner.prune(context)
    _check(pruned, pruner, model, label)
    for line in _told(pruned, label, model, wanted):
        log.note(line)
    space = _space(pruned, model, truncated_prefill=evaluation.truncates_prefill)
    return Pruning(pruner, pruned, training, blocks=blocks, parameters=wanted), space


def _told(pruned: Pruned, label: str, model: BlockModel, wanted: int) -> Iterator[str]:
    """Yield what a run says of a pruner's work."""
    if pruned.replaced is not None:
        yield (
            f"{label} replaced the whole model: no removal of blocks or channels says what it is, so there is no plan for two "
            "stages and no plan.json, and prefill and decode would both run it ('unified')"
        )
    kept = pruned.kept_parameters(model.sizes) + added_biases(pruned.removal, model, pruned.modules)
    yield (
        f"{label} removed {100 * (1 - kept / model.sizes.parameters):.2f} % of the parameters; "
        f"{100 * wanted / model.sizes.parameters:.2f} % were asked for"
    )


def _space(pruned: Pruned, model: BlockModel, *, truncated_prefill: bool) -> SearchSpace:
    """Return the space that a splitter sees: what the pruner removed, all elements alike."""
    removal = pruned.removal
    scores = Scores(pruned.block_scores or (0.0,) * model.block_count)
    weights = (1.0,) * len(removal)
    costs = CostModel(model.block_count, model.sizes, truncated_prefill)
    return SearchSpace(removal.blocks_removed, removal.elements, weights, removal, scores, costs)


def _parameters(recipe: Recipe, model: BlockModel, blocks: int) -> int:
    fraction = recipe.settings.prune.fraction
    share = model.sizes.share_of_parameters(blocks) if fraction is None else fraction
    return round(share * model.sizes.parameters)


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
        raise PluginError(f"{label} merged {missing[0]}, but gave no block that stands for it")
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
