"""Why layers cannot have the number formats of a recipe, as far as that is certain before they get them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pdtrim_core.api.format_facts import FormatFacts
from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.execution.quantized_weights import linears_of
from pdtrim_core.execution.recovered_weights import STAGES
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.quantized_linear import linears_in, other_matrices
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.recipe import Recipe


def check_formats(recipe: Recipe, model: Any, layout: BlockLayout, *, name: str, family: str) -> None:
    """Raise `PdtrimError` where a model, which may be on the meta device, cannot have the formats of a recipe."""
    schemes = {} if recipe.quantizer is None else recipe.quantizer.formats
    if not schemes:
        return
    blocks = list(model.get_submodule(layout.blocks))
    others = sorted({matrix for block in blocks for matrix in other_matrices(block)})
    if others:
        raise PdtrimError(
            f"formats: {name} ({family}) has weights in its blocks that are in no linear layer, such as {others[0]}, and only "
            "linear layers get a format: leave formats out"
        )
    if not layout.kv and len({schemes.get(stage) for stage in STAGES}) > 1:
        raise PdtrimError(
            f"formats: {name} ({family}) computes K and V together with Q, so that decode cannot read K/V that other weights "
            "made: give both stages the same format"
        )
    inputs = {part: linear.in_features for block in blocks for part, linear in linears_in(block).items()}
    _check(recipe, name, family, tuple(schemes.values()), inputs)


def check_layers(recipe: Recipe, model: BlockModel, plan: Plan, modules: Modules) -> None:
    """Raise `PdtrimError` where the layers that a plan left cannot have the formats of a recipe."""
    for stage, scheme in recipe.quantizer.formats.items() if recipe.quantizer is not None else ():
        inputs = {
            f"{name} of block {layer.block} in {stage}": linear.in_features
            for layer, _, linears in linears_of(model, plan, stage, modules)
            for name, linear in linears.items()
        }
        _check(recipe, model.name, model.config.model_type, (scheme,), inputs)


def _check(recipe: Recipe, name: str, family: str, schemes: Iterable[str], inputs: Mapping[str, int]) -> None:
    quantizer = recipe.quantizer
    assert quantizer is not None
    with blame(recipe.host.label_of(quantizer)):
        problems = quantizer.problems(FormatFacts(name, family, tuple(dict.fromkeys(schemes)), inputs))
    if problems:
        raise PdtrimError("; also, ".join(f"formats: {problem}" for problem in problems))
