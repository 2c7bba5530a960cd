"""The measurements of one run: the search, the split and the result table, on one prefix cache."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from random import Random

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.items import Calibration, Item
from pdtrim_core.data.readings import Score
from pdtrim_core.errors import PdtrimError, PluginError
from pdtrim_core.execution.packing import packing_agrees
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.events import RunEvents
from pdtrim_core.pipeline.merge_pairs import Merges
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.pipeline.prune import Pruning
from pdtrim_core.pipeline.run_cache import RunCache, keys_of, values_keys
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Gain, Row, SearchStep, Value
from pdtrim_core.results.run_folder import RunFolder
from pdtrim_core.search.driver import Exchange, Ledger, drive


class Bench:
    """The measurements of one run: two sets of items, one prefix cache, one ledger each.

    `dense` is given where `model` is a whole other one in its place. Its values
    then have a part of the journal of their own.
    """

    def __init__(  # noqa: PLR0913 - what a run has put together until here
        self,
        recipe: Recipe,
        model: BlockModel,
        calibration: Calibration,
        *,
        merges: Merges | Pruning,
        shared: RunCache,
        host: PluginHost,
        folder: RunFolder,
        log: RunEvents,
        dense: BlockModel | None = None,
    ) -> None:
        self._recipe = recipe
        self._host = host
        self._model = model
        self._dense = dense
        self._merges = merges
        self._folder = folder
        self._log = log
        self._calibration = calibration
        self._replacements = merges.modules
        self._shared = shared
        training = "untrained" if merges.put_off else merges.digest
        self._key_of = values_keys(recipe, weights=model.fingerprint, data=calibration.digest, training=training)
        # The same plan is worth something else before its merges are trained, so the journal has a part for that.
        self.ledger = self._ledger("untrained" if merges.put_off else "calibration", calibration.items, folder)
        self._apart = self._ledger("held-out", calibration.held_out, folder) if calibration.held_out else None
        self._seconds_each = 0.0

    @cached_property
    def _prefix_cache(self) -> PrefixCache:
        """Made when something is measured: a run that only goes through its journal needs none."""
        if self._dense is not None:
            # Measured once and by no other run, so nothing of it is kept.
            return self._new_prefix_cache()
        return self._shared.latest("prefix cache", keys_of(self._recipe).prefix_cache, self._new_prefix_cache)

    def _new_prefix_cache(self) -> PrefixCache:
        evaluation, items = self._recipe.settings.evaluation, self._calibration.items
        models = [self._model] if self._dense is None else [self._model, self._dense]
        packed = evaluation.pack_rows and all(packing_agrees(m, items, batch_tokens=evaluation.batch_tokens) for m in models)
        return PrefixCache(
            self._model,
            first_token=evaluation.first_token,
            batch_tokens=evaluation.batch_tokens,
            budget=evaluation.cache_budget if self._dense is None else 0,
            packed=packed,
            shared_tokens=evaluation.share_tokens,
            reuse_plans=evaluation.reuse_plans,
            dense=self._dense,
        )

    def _ledger(self, part: str, items: tuple[Item, ...], folder: RunFolder) -> Ledger:
        objective = self._recipe.objective
        part = part if self._dense is None else f"replaced {part}"
        problems = objective.problems(items)
        if problems:
            raise PdtrimError(f"objective '{objective.name}' cannot measure the {part} items: {problems[0]}")
        measurement = Measurement(
            lambda: self._prefix_cache,
            objective,
            items,
            label=self._host.label_of(objective),
            replacements=self._replacements,
            early_stop=self._recipe.settings.evaluation.early_stop,
            note=self._log.note,
            known=lambda plan: self._shared.values(self._key_of(plan)),
        )
        return Ledger(
            measurement,
            known=folder.known.get(part),
            record=lambda plan, reading: folder.note(part, plan, reading),
            notify=lambda candidate: self._host.tell("pdtrim_candidate_measured", candidate=candidate),
        )

    def dense(self) -> Score:
        """Measure the dense model, and with it how long a measurement takes."""
        if self.ledger.known(Plan()) is not None:
            return self.ledger.exact(Plan())
        # What is done once, such as laying out the batches, is no part of the time that each measurement takes.
        self._prefix_cache.batches(self._calibration.items)
        key = (*keys_of(self._recipe).prefix_cache, repr(self._recipe.objective))
        self._seconds_each = self._shared.latest("seconds of a measurement", key, self._time_dense)
        known = self.ledger.known(Plan())
        return self.ledger.exact(Plan()) if known is None else known

    def _time_dense(self) -> float:
        started = time.perf_counter()
        self.ledger.exact(Plan())
        return time.perf_counter() - started

    def search(self, space: SearchSpace) -> Plan:
        """Let the searcher find what decode loses."""
        self._preview("search", self._recipe.searcher.steps(space))
        searcher = self._recipe.searcher
        label = self._host.label_of(searcher)
        requests = searcher.search(space, self._rng("search"))
        # Should there be a second search, over other sets, it is the one that counts.
        self._log.search.clear()
        best, _ = drive(
            requests,
            self.ledger,
            label=label,
            problems=space.problems,
            note=self._log.note,
            told=lambda asked: self._log.search.append(_step(asked)),
        )
        if best is None:
            raise PluginError(f"{label} asked for no plan at all")
        return best.plan

    def split(self, found: Plan, costs: CostModel) -> Plan:
        """Let the splitter decide what prefill keeps; then leave out what no one reads behind the last K/V."""
        splitter = self._recipe.splitter
        label = self._host.label_of(splitter)
        costs = replace(costs, model=self._model) if splitter.needs_model else costs
        requests = splitter.split(found, costs, self._rng("split"))

        def problems(plan: Plan) -> Iterable[str]:
            return [] if plan.decode == found.decode else ["a splitter may change prefill only"]

        _, plan = drive(requests, self.ledger, label=label, problems=problems, note=self._log.note)
        if not isinstance(plan, Plan) or plan.decode != found.decode:
            raise PluginError(f"{label} returned {plan}: it must return a plan with the decode that it was given")
        return plan.truncated_prefill(self._model.block_count) if self._recipe.settings.evaluation.truncates_prefill else plan

    def of_replaced(self, model: BlockModel) -> Bench:
        """Return the bench of a whole other model in place of this one's."""
        return Bench(
            self._recipe,
            model,
            self._calibration,
            merges=self._merges,
            shared=self._shared,
            host=self._host,
            folder=self._folder,
            log=self._log,
            dense=self._model,
        )

    def measurements(self, rows: int) -> int:
        """About how many measurements so many rows of the result table take."""
        return rows if self._apart is None else 2 * rows

    def rows(self, plans: Mapping[str, Plan]) -> tuple[Row, ...]:
        """Measure plans by name, on the items that measured and on held-out ones."""
        return tuple(
            Row(
                name,
                _value(self.ledger.exact(row), len(self._calibration.items)),
                None if self._apart is None else _value(self._apart.exact(row), len(self._calibration.held_out)),
            )
            for name, row in plans.items()
        )

    def gains(self, found: Plan, plan: Plan) -> tuple[Gain, ...]:
        """Return what it brought to give back each element alone, where that was measured."""
        start = Plan.unified(found.decode)
        before = self.ledger.known(start)
        gains = []
        for element in found.decode:
            after = self.ledger.known(Plan(prefill=start.prefill.without(element), decode=found.decode))
            if before is not None and after is not None and len(found.decode):
                error = after.error_of_gain_over(before)
                runs = all(plan.state("prefill", block) in ("run", "shrunk") for block in element.blocks)
                kept_in_prefill = runs and element not in plan.prefill
                gains.append(Gain(str(element), round(after - before, 4), error, kept_in_prefill=kept_in_prefill))
        return tuple(gains)

    def _preview(self, what: str, steps: int | None) -> None:
        if steps and self._seconds_each:
            seconds = steps * self._seconds_each
            self._log.preview(f"{what}: at most {steps} measurements x {self._seconds_each:.1f} s = about {_duration(seconds)}")

    def _rng(self, step: str) -> Random:
        return Random(f"{self._recipe.settings.seed} {step}")  # noqa: S311 - reproducible draws, nothing secret


def rows_of(bench: Bench, found: Plan, plan: Plan, replaced: BlockModel | None) -> tuple[Row, ...]:
    """Measure dense, unified and staged; a replaced model is unified, and nothing is staged."""
    if replaced is not None:
        return *bench.rows({"dense": Plan()}), *bench.of_replaced(replaced).rows({"unified": Plan()})
    return bench.rows({"dense": Plan(), "unified": Plan.unified(found.decode), "staged": plan})


def _step(asked: Exchange) -> SearchStep:
    prefill, decode = (", ".join(str(element) for element in asked.plan.removal(stage)) for stage in ("prefill", "decode"))
    reading = asked.reading
    return SearchStep(prefill, decode, reading.score, reading.ceiling, asked.floor, asked.temperature, asked.may_win)


def _value(score: Score, items: int) -> Value:
    mean = score.reading.mean
    assert mean is not None
    return Value(mean=mean, score=float(score), error=round(score.error, 4), items=items)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
