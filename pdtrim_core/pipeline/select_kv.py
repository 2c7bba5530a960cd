"""Letting the selector of a recipe say which tokens of a prompt the blocks of decode read: the last step before the table."""

from __future__ import annotations

from dataclasses import replace

from pdtrim_core.api.selection_context import SelectionContext
from pdtrim_core.data.items import Calibration
from pdtrim_core.errors import PdtrimError, PlanError, PluginError, blame
from pdtrim_core.execution.attention_mass import masses, watchable
from pdtrim_core.execution.selected_kv import check_masks
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.plan.costs import PREFILL_TOKENS
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.selections import Edges, FirstOnly
from pdtrim_core.recipe.recipe import Recipe


def check_selector(recipe: Recipe, model: BlockModel, calibration: Calibration) -> None:
    """Raise `PdtrimError` where it is certain already that a recipe's selector cannot do its work on a model and its items."""
    selector = recipe.kv_selector
    if selector is None or not selector.selects:
        return
    check_masks(model)
    context = _context(recipe, model, Plan(), {}, calibration)
    texts = watchable(calibration.items, context.first_token)
    if selector.needs_attention and not texts:
        raise PdtrimError(
            f"kv_selector: in no item of calibration '{recipe.calibration.name}' decode runs a token behind a prompt: "
            "choose another calibration, or first-only"
        )
    with blame(recipe.host.label_of(selector)):
        problems = selector.problems(context.facts)
    if problems:
        raise PdtrimError("; also, ".join(f"kv_selector: {problem}" for problem in problems))
    if selector.needs_attention:
        # One text tells whether there are weights at all.
        pair = TwoPhaseModel(model, Plan(), first_token=context.first_token)
        masses(pair, [item for item, _ in texts[:1]], [FirstOnly(block) for block in context.blocks])


def select_kv(context: RunContext, model: BlockModel, calibration: Calibration, plan: Plan, modules: Modules) -> Plan:
    """Return a plan with what the recipe's selector lets the blocks of decode read; `modules` are all that the pair has."""
    recipe, selector = context.recipe, context.recipe.kv_selector
    if selector is None:
        return plan
    label = context.host.label_of(selector)
    with context.events.step("select K/V"):
        given = replace(_context(recipe, model, plan, modules, calibration), note=context.events.note)
        with blame(label):
            found = list(selector.select(given))
        strange = [one for one in found if not isinstance(one, Edges | FirstOnly)]
        if strange:
            raise PluginError(f"{label} returned {type(strange[0]).__name__} where Edges or FirstOnly are expected")
        try:
            selected = plan.selecting(found)
            selected.check_fits(model.block_count)
        except PlanError as error:
            raise PluginError(f"{label}: {error}") from None
    before, after = (model.sizes.kv_bytes(one) for one in (plan, selected))
    context.events.note(
        f"K/V: {len(found)} of decode's {len(given.blocks)} blocks read only some of a prompt; {PREFILL_TOKENS} tokens ship "
        f"{after * PREFILL_TOKENS / 1e6:.2f} MB of K/V, and {before * PREFILL_TOKENS / 1e6:.2f} MB without selection"
    )
    return selected


def _context(recipe: Recipe, model: BlockModel, plan: Plan, modules: Modules, calibration: Calibration) -> SelectionContext:
    first_token = recipe.settings.evaluation.first_token
    return SelectionContext(model, plan, modules, calibration.items, recipe.calibration.name, first_token)
