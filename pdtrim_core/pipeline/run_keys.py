"""What each thing of a run depends on: the keys under which a `RunCache` holds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pdtrim_core.host.sources import engine
from pdtrim_core.pipeline.run_cache import Key
from pdtrim_core.plan.elements import Merge, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.recipe import Recipe

if TYPE_CHECKING:
    from pdtrim_core.model.block_model import BlockModel


@dataclass(frozen=True)
class Keys:
    """The keys of a recipe: what each of its parts depends on, and on nothing else."""

    model: Key
    calibration: Key
    scores: Key
    prefix_cache: Key

    @property
    def order(self) -> tuple[Key, Key, Key, Key]:
        """By which to order recipes so that those that share most are neighbours."""
        return self.model, self.calibration, self.prefix_cache, self.scores


def keys_of(recipe: Recipe) -> Keys:
    """Return the keys of a recipe."""
    data, code = recipe.to_data(), code_of(recipe)
    evaluation = recipe.settings.evaluation
    model = (_text("model", [data["model"], code["model"], engine()]),)
    fresh = recipe.settings.search.fresh_wanted(recipe.calibration.samples) if recipe.pruner is None else 0
    drawn = [data["calibration"], code["calibration"], recipe.settings.seed, fresh]
    calibration = (*model, _text("calibration", drawn))
    # Batches decide about the last digits, so that a run is the same bit by bit only with the same ones.
    threads, batch_tokens = evaluation.threads, evaluation.batch_tokens
    scores = (*calibration, _text("scores", [data.get("scorer"), code.get("scorer"), threads, batch_tokens]))
    switches = [
        evaluation.pack_rows,
        evaluation.share_tokens,
        evaluation.reuse_plans,
        evaluation.cache_budget,
        evaluation.compile,
    ]
    packing = [evaluation.first_token, batch_tokens, *switches, threads]
    return Keys(model, calibration, scores, (*calibration, _text("prefix cache", packing)))


def values_keys(recipe: Recipe, *, weights: str, data: str, training: str) -> Callable[[Plan], Key]:
    """Return the function that gives the key of a plan's values.

    `weights`, `data` and `training` are digests. How merged blocks were trained matters to plans that have some.
    """
    parts, code = recipe.to_data(), code_of(recipe)
    plain = (*keys_of(recipe).prefix_cache, _text("objective", [parts["objective"], code["objective"]]), weights, data)
    trained = (*plain, _text("distiller", [parts["distiller"], code["distiller"]]), training)

    def key(plan: Plan) -> Key:
        return trained if any(isinstance(element, Merge | Shrink) for element in plan.decode) else plain

    return key


def dense_code(model: BlockModel) -> dict[str, str]:
    """Return what makes a dense model's answers, by name."""
    return {**engine(), "the model": model.exact_fingerprint[:12], "number format": str(model.dtype)}


def losses_key(recipe: Recipe, weights: str) -> Key:
    """Return the key of what a pruner measures itself, the loss of removals: `weights` is the model's exact digest."""
    return (*keys_of(recipe).model, weights)


def code_of(recipe: Recipe) -> dict[str, str]:
    """Return where the code of each component of a recipe comes from, with a hash of it, by kind."""
    return {kind: recipe.host.source_of(getattr(recipe, kind)) for kind in recipe.kinds}


def sources_of(recipe: Recipe) -> dict[str, str]:
    """Return the code that a run's numbers come from, as an environment has it: engine and components, by their names."""
    return {**engine(), **{f"{kind} '{getattr(recipe, kind).name}'": code for kind, code in code_of(recipe).items()}}


def digest_of(key: Key) -> str:
    """Return a short hash of a key, for what is stored."""
    return hashlib.sha256("\n".join(key).encode()).hexdigest()[:12]


def _text(sort: str, data: Any) -> str:
    return f"{sort} {json.dumps(data, sort_keys=True)}"
