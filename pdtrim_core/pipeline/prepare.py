"""The first steps of a run, each of which calls one component once: for the model, for the items, for the scores."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from itertools import islice
from random import Random

from pdtrim_core.api.model_source import ModelSource
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.data.items import Calibration, Sample, calibrate
from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import PdtrimError, PluginError, blame
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.settings import Quantile
from pdtrim_core.search.space import DEFAULT_QUANTILE, DEFAULT_THRESHOLD, quantile_threshold


def open_model(source: ModelSource, host: PluginHost) -> BlockModel:
    """Open a model and find its blocks. Raises `PdtrimError` for a model that cannot be pruned, with the reason."""
    with blame(host.label_of(source)):
        loaded = source.telling(partial(_tell_opening, host)).open()
        files = source.files() or ()
    layout = host.find_blocks(loaded.model, loaded.name)
    model = BlockModel(
        loaded.model,
        loaded.tokenizer,
        layout,
        name=loaded.name,
        license_id=loaded.license,
        dtypes=loaded.dtypes,
        mapped=loaded.mapped,
    )
    model.files = tuple(files)
    model.check_finite()
    return model


def _tell_opening(host: PluginHost, what: str, share: float) -> None:
    host.tell("pdtrim_work_advanced", what=what, number=0, count=0, share=share)


def draw(recipe: Recipe, host: PluginHost, model: BlockModel) -> Calibration:
    """Draw the samples that measure, the held-out ones, and fresh ones for finalists; tokenise them.

    There are fewer fresh ones, or none, where the source has no more. Raises `PdtrimError` that names the first item which the
    model cannot read.
    """
    source = recipe.calibration
    rng = Random(f"{recipe.settings.seed} calibration")  # noqa: S311 - reproducible draws, nothing secret
    with blame(host.label_of(source)):
        held_out = source.draw_held_out(source.held_out, rng) if source.held_out else []
        if held_out is None:
            together = list(islice(source.draw(source.samples + source.held_out, rng), source.samples + source.held_out))
            drawn, held_out = together[: source.samples], together[source.samples :]
        else:
            together = drawn = list(islice(source.draw(source.samples, rng), source.samples))
            held_out = list(held_out)
        fresh = _fresh(recipe, {sample.content for sample in (*drawn, *held_out)}, before=len(together))
    calibration = calibrate(drawn, held_out, model.tokenizer, fresh=fresh)
    for item in (*calibration.items, *calibration.held_out, *calibration.fresh):
        for choice, tokens in enumerate(item.choices):
            model.check_tokens(item.prompt_of(choice) + tokens, f"the item '{item.name}' of calibration '{source.name}'")
    return calibration


def _fresh(recipe: Recipe, taken: Collection[str], *, before: int) -> list[Sample]:
    """Return the fresh samples of a recipe that searches: such as are not taken, from a draw of their own.

    `before` samples were drawn already, so that among so many more there are as many fresh ones as are wanted.
    """
    source = recipe.calibration
    wanted = recipe.settings.search.fresh_wanted(source.samples) if recipe.pruner is None else 0
    while wanted:
        rng = Random(f"{recipe.settings.seed} fresh")  # noqa: S311 - reproducible draws, nothing secret
        try:
            samples = list(islice(source.draw(before + wanted, rng), before + wanted))
        except PdtrimError:  # it has not so many
            wanted //= 2
        else:
            return list(islice((sample for sample in samples if sample.content not in taken), wanted))
    return []


def score(recipe: Recipe, host: PluginHost, model: BlockModel, calibration: Calibration) -> Scores:
    """Let the scorer score the blocks over prompts with their right continuations."""
    sequences = [item.tokens for item in calibration.items]
    scorer, batch_tokens = recipe.scorer, recipe.settings.evaluation.batch_tokens
    context = ScoreContext(model, sequences, batch_tokens=batch_tokens, gradients=scorer.needs_gradients)
    label = host.label_of(scorer)
    with blame(label), context:
        scores = scorer.score(context)
    if not isinstance(scores, Scores):
        raise PluginError(f"{label} returned {type(scores).__name__} where Scores are expected")
    problems = scores.problems(model.block_count)
    if problems:
        raise PluginError(f"{label} returned {problems[0]}")
    return replace(scores, norms=context.norms)


def threshold_of(recipe: Recipe, scores: Scores) -> float:
    """Return the threshold d_T on pair scores; infinite where nothing is to be merged."""
    given = recipe.settings.prune.merge_threshold
    if not recipe.settings.prune.merges:
        return math.inf
    if given is None:
        given = DEFAULT_THRESHOLD if scores.similarity else Quantile(quantile=DEFAULT_QUANTILE)
    if isinstance(given, Quantile):
        return quantile_threshold(scores, given.quantile)
    if scores.similarity:
        return given
    raise PdtrimError(
        f"prune.merge_threshold = {given} goes with scores that are cosines, and those of '{recipe.scorer.name}' are not: say "
        "merge_threshold = {quantile = 0.9}, or merges = false"
    )
