"""Other pruners: what one is given, what it gives back, and how that becomes what a splitter starts from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import nn

from pdtrim_core.api.kinds import Objective, Pruner
from pdtrim_core.api.pruned import Pruned
from pdtrim_core.api.requests import Staged
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.items import Calibration, Item, digest_of
from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import PdtrimError, PlanError, PluginError, blame
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import MODULES, REPLACED, added_biases, save_modules, save_replaced
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.pipeline.train_merges import Training
from pdtrim_core.plan.elements import Merge, Removal, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import MergeResult
from pdtrim_core.search.driver import Ledger

if TYPE_CHECKING:
    from pdtrim_core.host.host import PluginHost
    from pdtrim_core.pipeline.events import RunEvents
    from pdtrim_core.recipe.recipe import Recipe
    from pdtrim_core.results.run_folder import RunFolder


class PruneContext:
    """The dense model, tokens, and the budget of a pruner, which is told the same to all.

    `sequences` are the tokens of the calibration items, each prompt with its right continuation. `blocks` is how many blocks
    are to go, or `parameters` how many weights, whichever a method counts in: both say the same budget. All randomness comes
    from `rng`. `train` makes the block that stands for a merge, and the merge as it came out; where it is not given, none is
    trained, and the block that training would start from stands for the run.
    """

    def __init__(  # noqa: PLR0913 - the last five have defaults
        self,
        model: BlockModel,
        sequences: Sequence[Sequence[int]],
        *,
        blocks: int,
        parameters: int,
        rng: Random,
        batch_tokens: int | None = None,
        cache_budget: int | None = None,
        note: Callable[[str], None] | None = None,
        ledger: Callable[[str, Measurement], Ledger] | None = None,
        train: Callable[[Merge], tuple[Merge, nn.Module]] | None = None,
    ) -> None:
        self.model = model
        self.sequences = [tuple(sequence) for sequence in sequences]
        self.blocks = blocks
        self.parameters = parameters
        self.rng = rng
        self.batch_tokens = batch_tokens
        self.note = note or (lambda text: None)
        self._cache_budget = cache_budget
        self._ledger = ledger or (lambda part, measurement: Ledger(measurement))
        self._train = train

    @property
    def states(self) -> ScoreContext:
        """The dense model's hidden states over the sequences."""
        return ScoreContext(self.model, self.sequences, batch_tokens=self.batch_tokens)

    def windows(self, length: int, count: int | None = None) -> list[tuple[int, ...]]:
        """Return the sequences joined and cut into windows of one length, `count` of them at most; the rest is left out.

        Raises `PdtrimError` where the sequences do not fill one window.
        """
        tokens = [token for sequence in self.sequences for token in sequence]
        starts = range(0, len(tokens) - length + 1, length)
        if not starts:
            raise PdtrimError(
                f"the calibration items have {len(tokens)} tokens together, too few for a window of {length}: ask for shorter "
                "windows or for more samples"
            )
        return [tuple(tokens[start : start + length]) for start in starts][:count]

    def trained(self, merge: Merge) -> tuple[Merge, nn.Module]:
        """Return a merge as the recipe's distiller makes it, with its kind of K/V, and the block that it trained for it.

        A context that was made without a recipe trains nothing: the block that training would start from stands for the merge.
        """
        if self._train is None:
            return merge, self.model.blocks[merge.keep]
        return self._train(merge)

    def loss_of(self, sequences: Sequence[Sequence[int]]) -> Callable[[Removal], float]:
        """Return the function that gives the loss of a removal from both stages: nats a token, behind the first of a sequence.

        Each measurement goes to the run's journal, under the part `losses` with a hash of these sequences, so that an
        interrupted run does not make it again. A removal may drop blocks and shrink them, but not merge: no blocks stand in.
        Raises `PdtrimError` where no sequence has two tokens, and, when measured, for a loss that is not finite.
        """
        items = [
            Item((tuple(s[:1]),), (tuple(s[1:]),), 0, (len(s) - 1,), f"window {number}")
            for number, s in enumerate(sequences)
            if len(s) > 1
        ]
        if not items:
            raise PdtrimError("there are no sequences of two tokens or more to measure a loss on: give longer samples")
        prefix_cache = PrefixCache(self.model, batch_tokens=self.batch_tokens, budget=self._cache_budget)
        measurement = Measurement(lambda: prefix_cache, _Loss(), items, label="the loss of a pruner", note=self.note)
        ledger = self._ledger(f"losses {digest_of(items)[:16]}", measurement)

        def loss(removal: Removal) -> float:
            mean = ledger.reading(Plan.unified(removal)).mean
            assert mean is not None
            return mean

        return loss


class _Loss(Objective):
    """The negative log-likelihood a token; its points decide nothing."""

    name = "loss"
    unit = "nats a token"

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        sums = staged.loglikelihoods(items)
        if not all(math.isfinite(total) for (total,) in sums):
            assert isinstance(staged, StagedModel)
            raise PdtrimError(
                f"the loss without {staged.plan.decode} is not finite; if the weights are in float16, which overflows early, say "
                'model.dtype = "bfloat16" or "float32"'
            )
        return [-total / len(item.choices[0]) for item, (total,) in zip(items, sums, strict=True)]

    def weight(self, item: Item) -> float:
        return float(len(item.choices[0]))

    def score(self, mean: float) -> float:
        return 100 / (1 + max(0.0, mean))


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
        cache_budget=evaluation.cache_budget,
        note=log.note,
        ledger=ledger,
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
    return SearchSpace(len(removal), removal.elements, weights, removal, scores, model.sizes, truncated_prefill=truncated_prefill)


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
