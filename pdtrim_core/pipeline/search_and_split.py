"""A searcher finds what decode loses, a splitter what prefill keeps: they ask for measurements, and a bench makes them."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic, perf_counter
from typing import Any, NamedTuple

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.plan_kinds import Searcher, StageSplitter
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.readings import Score
from pdtrim_core.errors import PluginError, blame
from pdtrim_core.pipeline.measurements import Bench
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.plan.elements import Element
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import SearchStep
from pdtrim_core.search.driver import Exchange, drive, drive_split, never
from pdtrim_core.search.finalists import Choice, choose
from pdtrim_core.search.out_of_time import IsOver, OutOfTime, completed
from pdtrim_core.wording import counted

SHORT = 0.1
"""Seconds of a measurement that are told in milliseconds below this."""


def search(context: RunContext, bench: Bench, space: SearchSpace) -> Plan:
    """Let the recipe's searcher find what decode loses. Raises `PluginError` where it requests nothing."""
    return _Search(context, bench, space).result()


def split(context: RunContext, bench: Bench, found: Plan, costs: CostModel) -> Plan:
    """Let the recipe's splitter decide what prefill keeps; then truncate prefill behind the last K/V that decode reads."""
    recipe, splitter = context.recipe, context.recipe.splitter
    costs = replace(costs, model=bench.model) if splitter.needs_model else costs
    costs = replace(costs, look_at_prompts=bench.look_at_prompts) if splitter.sees_routers else costs
    requests = splitter.split(found, costs, context.rng("split"))
    plan = drive_split(requests, bench.ledger, found, label=context.host.label_of(splitter), note=context.events.note)
    return plan.truncated_prefill(bench.model.block_count) if recipe.settings.evaluation.truncates_prefill else plan


def expected(context: RunContext, component: Searcher | StageSplitter, given: Any) -> int | None:
    """Return about how many measurements a searcher or splitter takes, as it says itself."""
    with blame(context.host.label_of(component)):
        return component.steps(given)


class _Moment(NamedTuple):
    """How many plans had been measured when a request was answered; no seconds before the first one was."""

    measured: int
    seconds: float | None


class _Search:
    """One search, with what it has asked for and what came of it."""

    def __init__(self, context: RunContext, bench: Bench, space: SearchSpace) -> None:
        self._context, self._bench, self._space = context, bench, space
        self._settings = context.recipe.settings.search
        self._results: dict[Plan, Score] = {}
        self._asked: set[Element] = set()
        self._steps = expected(context, context.recipe.searcher, space)
        self._before = _Moment(self._measured, None)

    def result(self) -> Plan:
        """Search, and let the last word fall between the best that was found."""
        # Should there be a second search, over other sets, it is the one that counts.
        self._context.events.search.clear()
        found = self._last_word(self._best())
        self._bench.remark_on_gains({"the search's result": found})
        return found

    def _best(self) -> Plan:
        """Return the best plan on the items that the search goes over, or of its time if that is limited."""
        searcher, events, ledger = self._context.recipe.searcher, self._context.events, self._bench.ledger
        label = self._context.host.label_of(searcher)
        requests = searcher.search(self._space, self._context.rng("search"))
        try:
            with ledger.limited(self._time_limit()):
                problems = self._space.problems
                best, _ = drive(requests, ledger, label=label, problems=problems, note=events.note, told=self._told)
        except OutOfTime as stopped:
            return self._ended(stopped)
        if best is None:
            raise PluginError(f"{label} requested no plan")
        return best.plan

    @property
    def _measured(self) -> int:
        return self._bench.ledger.tally.measured + self._bench.ledger.tally.cut_short

    def _told(self, exchange: Exchange) -> None:
        """Remember what was asked for, and what came of it."""
        self._preview()
        self._asked.update(exchange.plan.decode)
        self._context.events.search.append(_step(exchange))
        if exchange.may_win and exchange.reading.score is not None:
            self._results[exchange.plan] = Score(exchange.reading)

    def _ended(self, stopped: OutOfTime) -> Plan:
        """Return the best plan of a search that came to the end of its time, completed where it had none of full size."""
        ledger, events = self._bench.ledger, self._context.events
        plan = stopped.best or completed(stopped, self._space, self._context.recipe.searcher.prefill_ceiling)
        measured = len(events.search)
        self._asked.update(plan.decode)
        self._results.setdefault(plan, ledger.exact(plan))
        if stopped.best is None:
            events.search.append(_step(Exchange(plan, ledger.latest(plan), None, None, may_win=True)))
        ended = f"search: ended after search.minutes = {self._settings.minutes:g}, with {counted(measured, 'plan')} measured"
        events.note(
            f"{ended}; the best of them that is of full size counts"
            if stopped.best is not None
            else f"{ended}, none of them without {counted(self._space.count, 'block')}; what it had begun is completed by block "
            f"scores: {plan.decode}"
        )
        return plan

    def _time_limit(self) -> IsOver:
        """Return what tells that the minutes that a search may take are over, counted from now."""
        minutes = self._settings.minutes
        if minutes is None:
            return never
        end = monotonic() + 60 * minutes
        return lambda: monotonic() >= end

    def _last_word(self, best: Plan) -> Plan:
        """Return the best of the finalists on fresh items, if it is better than the first removal by more than luck.

        The best of many plans on the items that a search went over is partly lucky, so the last word falls on others.
        """
        first = self._space.first
        start = next((plan for plan in self._results if plan.decode == first), self._space.plan_of(first))
        ranked = sorted(self._results, key=self._results.__getitem__, reverse=True)
        finalists = [plan for plan in ranked if plan != start][: self._settings.finalists_wanted]
        if not finalists or (self._settings.finalists_wanted == 1 and not self._settings.caution_wanted):
            return best
        ledger = self._bench.fresh or self._bench.ledger
        found = ledger.scores(dict.fromkeys([start, *finalists], False))
        scores = {plan: score for plan, score in found.items() if score is not None}
        choice = choose(scores, start, self._settings.caution_wanted)
        # The first removal cannot be the result where it has elements that the search never asked for, such as protected blocks.
        may_stay = self._asked.issuperset(first)
        self._tell(choice, len(finalists), best_stays=best == start, may_stay=may_stay)
        return choice.plan if may_stay or not choice.stays else max(finalists, key=scores.__getitem__)

    def _tell(self, choice: Choice, finalists: int, *, best_stays: bool, may_stay: bool) -> None:
        """Note how the last word fell; nothing where the first removal was the best on the items that were searched, too."""
        note, no_fresh = self._context.events.note, "the items it was searched on, since there are no fresh ones"
        where = no_fresh if self._bench.fresh is None else f"{self._bench.fresh_count} fresh items"
        gain = f"by {choice.gain:.2f} +- {choice.error:.2f} points on {where}"
        those = counted(finalists, "finalist")
        if choice.stays and not may_stay:
            note(
                f"search: the plan taken is the best of {finalists} on {where}; the first removal would be as good, but it "
                "loses blocks that the searcher never removes"
            )
        elif not choice.stays:
            note(f"search: the plan taken, of {those}, beats the first removal {gain}")
        elif choice.gain > 0:
            note(
                f"search: the first removal stays: the best of {those} beats it {gain}, which may be luck (less than "
                f"search.caution = {self._settings.caution_wanted:g} standard errors); more calibration samples tell more"
            )
        elif not best_stays:
            note(f"search: the first removal stays: no finalist (of {finalists}) beats it on {where}")

    def _preview(self) -> None:
        """Say how long the search may take, once: by what its second request took.

        The first one runs the dense model, too, whose hidden states all others go on from. And plans that are asked for together
        are measured side by side, so that the first of them to be done tells nothing.
        """
        measured, now = self._measured, perf_counter()
        if not self._steps or measured == self._before.measured:
            return
        begun, self._before = self._before, _Moment(measured, now)
        if begun.seconds is None:
            return
        each, steps, minutes = (now - begun.seconds) / (measured - begun.measured), self._steps, self._settings.minutes
        self._steps = None
        ended = f", ended after {minutes:g} min" if minutes is not None and steps * each > 60 * minutes else ""
        told = f"{each:.1f} s" if each >= SHORT else f"{1000 * each:.0f} ms"
        self._context.events.preview(
            f"search: at most {counted(steps, 'measurement')} x {told} = about {_duration(steps * each)}{ended}"
        )


def _step(exchange: Exchange) -> SearchStep:
    prefill, decode = (", ".join(str(element) for element in exchange.plan.removal(stage)) for stage in ("prefill", "decode"))
    reading = exchange.reading
    return SearchStep(prefill, decode, reading.score, reading.ceiling, exchange.floor, exchange.temperature, exchange.may_win)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
