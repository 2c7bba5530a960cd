"""The measurements of one run: what the search, the split and the result table ask for, on one prefix cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Literal, get_args

from pdtrim_core.api.routed_tokens import RoutedTokens, look_at_routers
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.data.items import Item, answers_digest, digest_of
from pdtrim_core.data.readings import Score
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.staged_model import Replacements
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.beyond_dense import remark
from pdtrim_core.pipeline.dense_beginnings import answer_length, with_beginnings
from pdtrim_core.pipeline.measured_elsewhere import MeasuredElsewhere
from pdtrim_core.pipeline.measured_model import MeasuredModel, ModuleSet
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.pipeline.run_cache import Key
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import Gain, Row, Value
from pdtrim_core.search.driver import Ledger, Tally

RUNNING = {"run", "shrunk", "no-attention", "no-mlp"}
"""States of a block that a stage runs as it is, or less some units or the other part."""
SEARCHED = ("calibration", "untrained")
"""The parts of the journal that a search measures; in the others all is measured whole."""
ItemSet = Literal["calibration", "held-out", "fresh"]
ITEM_SETS: tuple[ItemSet, ...] = get_args(ItemSet)
MUCH_MEMORY = 2**30
"""Bytes of hidden states from which on a run says how many it will keep."""


class Bench:
    """The measurements of one run: two sets of items, one prefix cache, one ledger each.

    `replaced` is a whole other model, measured instead of the dense one; its values have their own part of the journal. `tally`
    counts the candidates on the items that measure.
    """

    def __init__(
        self,
        context: RunContext,
        inputs: RunInputs,
        module_set: ModuleSet,
        *,
        replaced: BlockModel | None = None,
        tally: Tally | None = None,
    ) -> None:
        self._context = context
        self._inputs = inputs
        self._module_set = module_set
        self._replaced = replaced
        self._measured = MeasuredModel(context, inputs, module_set, replaced)
        self._ledgers: dict[ItemSet, Ledger] = {}
        if tally is not None:
            self.ledger.tally = tally
        if not answer_length(context.recipe.objective, context.host):
            # Only answers are worth waiting for: that items cannot be measured is better known early.
            for of_items in ITEM_SETS:
                self._ledger_of(of_items)
        self._remarked: set[tuple[str, Plan]] = set()

    @cached_property
    def _elsewhere(self) -> MeasuredElsewhere | None:
        """The workers that measure; None where this process does."""
        executor = self._measured.executor
        return None if executor is None else MeasuredElsewhere(executor, self._measured.subject, self.model)

    @property
    def ledger(self) -> Ledger:
        """The ledger on the items that measure."""
        ledger = self._ledger_of("calibration")
        assert ledger is not None
        return ledger

    @property
    def fresh(self) -> Ledger | None:
        """The ledger on fresh items; None where there are none."""
        return self._ledger_of("fresh")

    def _ledger_of(self, of_items: ItemSet) -> Ledger | None:
        """Return the ledger of one set of items, made when it is first asked for; None where the set is empty."""
        calibration = self._inputs.calibration
        items = {"calibration": calibration.items, "held-out": calibration.held_out, "fresh": calibration.fresh}[of_items]
        if items and of_items not in self._ledgers:
            self._ledgers[of_items] = self._new_ledger(of_items, items)
        return self._ledgers.get(of_items)

    def _new_ledger(self, of_items: ItemSet, items: tuple[Item, ...]) -> Ledger:
        context, objective, measured = self._context, self._context.recipe.objective, self._measured
        items = with_beginnings(context, self._inputs.model, of_items, items)
        name = self._journal_part(of_items)
        problems = objective.problems(items)
        if problems:
            raise PdtrimError(f"objective '{objective.name}' cannot measure the {name} items: {problems[0]}")
        # Nothing of a ledger refers to this bench, so that all of a run is freed when it ends.
        measurement = Measurement(
            lambda: measured.prefix_cache,
            ObjectiveOnItems(objective, items, context.host.label_of(objective)),
            modules_of=measured.modules_of,
            error=self._error if name in SEARCHED else 0.0,
            note=context.events.note,
            known=lambda plan: context.cache.values(measured.key_of(plan)),
            elsewhere=self._elsewhere,
            advanced=lambda plans, share: context.host.tell(
                "pdtrim_work_advanced", what="candidates", number=0, count=plans, share=share
            ),
        )
        # The digest of the items does not have the fresh ones: those of a folder that 0.1 wrote would then be others.
        own = f"{digest_of(items) if of_items == 'fresh' else ''}{answers_digest(items)}"

        def by(plan: Plan) -> Key:
            return (*measured.key_of(plan), own)

        return context.ledger(name, measurement, by=by, items=len(items), together=measurement.together)

    def _journal_part(self, of_items: ItemSet) -> str:
        """Return the part of the journal: the same plan has another score before its merges are trained, and in another model."""
        untrained = {"calibration": "untrained", "held-out": "held-out", "fresh": "untrained fresh"}
        name = of_items if self._module_set.trained else untrained[of_items]
        return name if self._replaced is None else f"replaced {name}"

    @property
    def fresh_count(self) -> int:
        """The number of fresh items."""
        return len(self._inputs.calibration.fresh)

    @property
    def model(self) -> BlockModel:
        """The model that is measured."""
        return self._measured.model

    @property
    def _error(self) -> float | None:
        """The probability with which a candidate may be given up wrongly; None where none may be given up at all."""
        settings = self._context.recipe.settings
        if not settings.evaluation.early_stop:
            return None
        return 0.0 if settings.search.exact or self._context.recipe.pruner is not None else settings.search.error

    @property
    def ledgers(self) -> dict[str, Ledger]:
        """The ledgers that were measured with and whose figures are shown, by what their items are called."""
        return {f"{each} items": self._ledgers[each] for each in ("calibration", "held-out") if each in self._ledgers}

    def dense(self) -> Score:
        """Measure the dense model."""
        new = self.ledger.known(Plan()) is None
        score = self.ledger.exact(Plan())
        if new:
            self._note_memory()
        return score

    def _note_memory(self) -> None:
        """Say how much memory the prefix cache will take where that is much and nobody asked for it."""
        most = self._measured.prefix_cache.most_bytes
        if self._context.recipe.settings.evaluation.cache_budget is None and most > MUCH_MEMORY:
            self._context.events.note(
                f"what is kept of the items between measurements will take up to {most / 1e9:.1f} GB: "
                "evaluation.cache_budget sets a limit in bytes, which changes no number; with none kept a search takes about "
                "half as long again"
            )

    def look_at_prompts(self, function: Callable[[RoutedTokens], None]) -> None:
        """Call a function with what the routers of the dense model choose for the tokens of prompts that prefill runs."""
        evaluation, items = self._context.recipe.settings.evaluation, self._inputs.calibration.items
        again = evaluation.first_token == "decode"
        prompts = list(dict.fromkeys(prompt for item in items if len(prompt := item.prompt_of(item.answer)) > again))
        if not prompts:
            raise PdtrimError(
                "prefill runs no token of the calibration items, so that no router can be seen: take longer prompts"
            )
        states = ScoreContext(self._inputs.model, prompts, batch_tokens=evaluation.batch_tokens)
        look_at_routers(states, [range(len(prompt) - again) for prompt in prompts], function)

    @property
    def modules_digest(self) -> str:
        """A hash of what made the modules that plans are measured with."""
        return self._module_set.digest

    def as_pruned(self) -> Bench:
        """Return a bench that measures plans as they are, without an estimate of what recovery would make of them."""
        if self._module_set.estimated is None:
            return self
        return Bench(self._context, self._inputs, replace(self._module_set, estimated=None), replaced=self._replaced)

    def of_recovered(self, modules: Replacements, plans: Collection[Plan], digest: str) -> Bench:
        """Return a bench that measures some plans with recovered layers, and all others as this one does."""
        together = {**self._module_set.modules, **modules}
        return Bench(
            self._context,
            self._inputs,
            replace(self._module_set, modules=together, recovered=dict.fromkeys(plans, digest), estimated=None),
        )

    def of_replaced(self, model: BlockModel) -> Bench:
        """Return a bench that measures a whole other model instead of this one's."""
        return Bench(self._context, self._inputs, self._module_set, replaced=model)

    def measurements(self, rows: int) -> int:
        """About how many measurements so many rows of the result table take."""
        return 2 * rows if self._inputs.calibration.held_out else rows

    def rows(self, plans: Mapping[str, Plan]) -> tuple[Row, ...]:
        """Measure plans by name, on the items that measured and on held-out ones."""
        calibration, held_out = self._inputs.calibration, self._ledger_of("held-out")
        return tuple(
            Row(
                name,
                _value(self.ledger.exact(row), len(calibration.items)),
                None if held_out is None else _value(held_out.exact(row), len(calibration.held_out)),
            )
            for name, row in plans.items()
        )

    def remark_on_gains(self, plans: Mapping[str, Plan], over: Bench | None = None) -> None:
        """Note which plans, by name, seem better than the dense model, on which items that were measured; once of each plan.

        `over` is the bench of the dense model, where this one measures a model that replaced it.
        """
        dense = (over or self).ledgers
        for (name, plan), (items, ledger) in product(plans.items(), self.ledgers.items()):
            found, before = ledger.known(plan), dense[items].known(Plan()) if items in dense else None
            if found is None or before is None or (items, plan) in self._remarked:
                continue
            text = remark(name, found, before, items=items, objective=self._context.recipe.objective.name)
            if text is not None:
                self._remarked.add((items, plan))
                self._context.events.note(text)

    def gains(self, found: Plan, plan: Plan) -> tuple[Gain, ...]:
        """Return the gain of keeping each single element in prefill, where that was measured."""
        start = Plan.unified(found.decode)
        before = self.ledger.known(start)
        gains = []
        for element in found.decode:
            after = self.ledger.known(Plan(prefill=start.prefill.without(element), decode=found.decode))
            if before is not None and after is not None and len(found.decode):
                error = after.error_of_gain_over(before)
                states = {plan.state("prefill", block) for block in element.blocks}
                lost = {(block, part) for block in element.blocks for part in plan.prefill.lost_at(block)}
                runs = states <= RUNNING and lost.isdisjoint(element.places)
                kept_in_prefill = runs and element not in plan.prefill
                gains.append(Gain(str(element), round(after - before, 4), error, kept_in_prefill=kept_in_prefill))
        return tuple(gains)


def open_bench(context: RunContext, inputs: RunInputs, module_set: ModuleSet) -> Bench:
    """Return a bench on which the dense model has been measured."""
    with context.events.step("measure the dense model", about=1):
        bench = Bench(context, inputs, module_set, tally=context.spent.tally)
        bench.dense()
    return bench


def rows_of(
    bench: Bench, found: Plan, plan: Plan, replaced: BlockModel | None, *, pruned: Mapping[str, Bench] | None = None
) -> tuple[Row, ...]:
    """Measure dense, unified and staged; a replaced model is unified, and nothing is staged.

    `pruned` has the benches of unified and staged, where these have other modules than that of the dense model.
    """
    if replaced is not None:
        other = bench.of_replaced(replaced)
        rows = *bench.rows({"dense": Plan()}), *other.rows({"unified": Plan()})
        other.remark_on_gains({"unified": Plan()}, over=bench)
        return rows
    rows = bench.rows({"dense": Plan()})
    for name, one in {"unified": Plan.unified(found.decode), "staged": plan}.items():
        of_one = (pruned or {}).get(name, bench)
        rows += of_one.rows({name: one})
        of_one.remark_on_gains({name: one}, over=bench)
    return rows


def _value(score: Score, items: int) -> Value:
    mean = score.reading.mean
    assert mean is not None
    return Value(mean=mean, score=float(score), error=round(score.error, 4), items=items)
