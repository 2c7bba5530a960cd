"""Measuring a plan: the objective over items, group by group, stopping early once a floor is out of reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from random import Random
from time import monotonic

import torch

from pdtrim_core.data.items import Item
from pdtrim_core.data.readings import DIGITS, Reading, Underway
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.look_ahead import LookAhead, answers_of
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline.measured_elsewhere import MeasuredElsewhere
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.run_cache import Values
from pdtrim_core.plan.plan import Plan
from pdtrim_core.search.stopping import WHOLE, Stop

SIDE_BY_SIDE = 8
"""Plans that are measured batch by batch where each is wanted whole: what they share is run once, and a bar moves."""
AHEAD = 7
"""Plans at most that are measured because they are likely to be asked for: a walk takes about every third or fourth step."""
FEWEST_IN_ROUND, MOST_ROUNDS = 16, 8
KEPT_AFTER = 10.0
"""Seconds after which values are yielded though their plans are not done: what a run that is killed loses, and a batch."""
TOLD_AFTER = 0.5
"""Seconds after which it is told again how far plans that are measured side by side are."""
PartialValues = list[float | None]
"""One value an item; None where it was not measured."""


class Measurement:
    """The value of plans on one set of items; `__call__` and `together` are what a `Ledger` calls.

    `prefix_cache` gives the hidden states that plans share; it is called when something is measured. `modules_of` gives what the
    elements and layers of a plan run, where that is not the model's own. When memory runs out on
    the device the batch is halved, `note` says so, and measuring goes on. `known` gives the values of items that earlier runs
    have measured under a plan, and takes new ones. `advanced` is told which share of the items is done of how many plans that are
    measured side by side.

    With `error` 0 a plan is given up once it certainly is not what it is measured for, with None never. Above 0 it also is once
    that is likely enough: wrong with this probability at most for what is requested at once (see `search.stopping`). Items are
    then measured in rounds that are drawn at random.

    `elsewhere` are workers that measure; what is decided by the values is decided here, as without them.
    """

    def __init__(  # noqa: PLR0913 - one for each thing that a value depends on, those that measure, and what is told
        self,
        prefix_cache: Callable[[], PrefixCache],
        objective: ObjectiveOnItems,
        *,
        modules_of: Callable[[Plan], Modules] = lambda plan: {},
        error: float | None = 0.0,
        note: Callable[[str], None] = lambda text: None,
        known: Callable[[Plan], Values] = lambda plan: {},
        elsewhere: MeasuredElsewhere | None = None,
        advanced: Callable[[int, float], None] = lambda plans, share: None,
    ) -> None:
        self._prefix_cache = prefix_cache
        self._objective = objective
        self._modules_of = modules_of
        self._error = error
        self._rounds = in_rounds(self.items) if error else [self.items]
        self._place = {item: number for number, item in enumerate(self.items)}
        self._note = note
        self._known = known
        self._elsewhere = elsewhere
        self._side_by_side = SIDE_BY_SIDE * (1 if elsewhere is None else elsewhere.count)
        self._advanced = advanced

    @property
    def items(self) -> tuple[Item, ...]:
        """The items that are measured."""
        return self._objective.items

    def __call__(self, plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        """Return the plan's reading; go on from one that was cut short."""
        *_, (_, reading) = self.together([plan], Stop(floor), {} if started is None else {plan: started})
        return reading

    def together(self, plans: Sequence[Plan], stop: Stop, started: Mapping[Plan, Reading]) -> Iterator[tuple[Plan, Reading]]:
        """Yield the readings of plans as they become known, in an order in which neighbours share hidden states.

        `started` are earlier readings, to go on from. When measuring is interrupted, what was measured until then is yielded
        first; and now and then it is anyway, as `Underway`.
        """
        stop = WHOLE if self._error is None else stop
        ordered = sorted(plans, key=self._depth_first)
        if self._prefix_cache().model.streams:
            wanted = (*ordered, *self._likely(ordered, stop))
            while True:
                try:
                    self._look_ahead({plan: started.get(plan) for plan in wanted})
                except torch.OutOfMemoryError:
                    self._halve_batches()
                    wanted = tuple(ordered)
                else:
                    break
        values = {plan: self._values_in(started.get(plan)) for plan in ordered}
        if stop.keep and self._error:
            yield from self._measure(values, stop)
        elif stop.keep and stop.keep < len(values):
            yield from self._raced(values, stop.keep)
        else:
            for of_step in self._steps(values):
                yield from self._measure(of_step, stop)

    def _steps(self, open_plans: Mapping[Plan, PartialValues]) -> Iterator[dict[Plan, PartialValues]]:
        """Yield plans in lots that are measured side by side."""
        plans = list(open_plans.items())
        yield from (dict(plans[start : start + self._side_by_side]) for start in range(0, len(plans), self._side_by_side))

    def _raced(self, open_plans: Mapping[Plan, PartialValues], keep: int) -> Iterator[tuple[Plan, Reading]]:
        """Measure plans as long as it is not certain, by those of earlier lots, that they are none of the best `keep`."""
        best: list[Reading] = []
        for of_step in self._steps(open_plans):
            stop = Stop(round(best[-1].score or 0.0, DIGITS), best[0]) if len(best) == keep else WHOLE
            for plan, reading in self._measure(of_step, stop):
                yield plan, reading
                if reading.score is not None:
                    best = sorted([*best, reading], key=lambda one: one.score or 0.0, reverse=True)[:keep]

    def _measure(self, open_plans: dict[Plan, PartialValues], stop: Stop) -> Iterator[tuple[Plan, Reading]]:
        """Measure plans side by side; one that is done is taken out of `open_plans`."""
        error = (self._error or 0.0) / _pairs(len(open_plans), stop.keep)
        while open_plans:
            try:
                for plan, reading in self._cut_short(open_plans, stop, error):
                    if not isinstance(reading, Underway):
                        del open_plans[plan]
                    yield plan, reading
                for plan in list(open_plans):
                    yield plan, self._objective.reading([value for value in open_plans.pop(plan) if value is not None])
            except torch.OutOfMemoryError:
                self._halve_batches()
            except KeyboardInterrupt:
                for plan, values in open_plans.items():
                    yield plan, Reading(None, None, tuple(values), ceiling=min(100.0, self._objective.ceiling(values)))
                raise

    def _cut_short(self, open_plans: Mapping[Plan, PartialValues], stop: Stop, error: float) -> Iterator[tuple[Plan, Reading]]:
        """Measure all items of the plans; yield those that are given up on the way, and now and then those that are underway.

        `error` is the probability with which one comparison of two plans may be wrong.
        """
        done: list[Item] = []
        kept_at, grown = monotonic(), set[Plan]()
        count, told_at = len(open_plans), monotonic()
        for of_round in self._rounds:
            groups = self._worst_first(self._prefix_cache().groups(of_round), stop)
            with self._asked(open_plans, groups):
                for group, plan, values, through in _turns(groups, open_plans):
                    ceiling = self._objective.ceiling(values)
                    if stop.floor is not None and ceiling < stop.floor:
                        yield plan, Reading(None, None, tuple(values), ceiling=ceiling)
                    elif self._fill_in(values, plan, group):
                        grown.add(plan)
                    if grown and monotonic() - kept_at >= KEPT_AFTER:
                        yield from self._underway({one: known for one, known in open_plans.items() if one in grown})
                        kept_at, grown = monotonic(), set()
                    if monotonic() - told_at >= TOLD_AFTER:
                        told_at = monotonic()
                        self._advanced(count, (len(done) + through) / len(self.items))
            done += of_round
            if self._error and len(done) < len(self.items):
                yield from self._surely_out(open_plans, stop, [self._place[item] for item in done], error)

    def _worst_first(self, groups: list[tuple[Item, ...]], stop: Stop) -> list[tuple[Item, ...]]:
        """Return groups of items, those first on which the plan that others are compared with falls short of the best there is.

        Others fall short on the same items, mostly, and so are soon known to miss their floor. In rounds, what is known for
        certain hardly ever ends a measurement, and the order must be random.
        """
        if self._error or stop.than is None or len(stop.than.items) != len(self.items):
            return groups
        short = self._objective.short_of_best(stop.than)
        return sorted(groups, key=lambda group: sum(short[self._place[item]] for item in group), reverse=True)

    def _halve_batches(self) -> None:
        """Go on with smaller batches where memory ran out. Raises `PdtrimError` where there are none."""
        if self._prefix_cache().batch_tokens < 2:
            raise PdtrimError("the device has no memory left, even for the smallest batch") from None
        self._prefix_cache().halve_batches()
        self._note(f"out of memory on the device: going on with batches of {self._prefix_cache().batch_tokens} tokens")

    def _underway(self, open_plans: Mapping[Plan, PartialValues]) -> Iterator[tuple[Plan, Reading]]:
        for plan, values in open_plans.items():
            yield plan, Underway(None, None, tuple(values), ceiling=min(100.0, self._objective.ceiling(values)))

    def _surely_out(
        self, open_plans: Mapping[Plan, PartialValues], stop: Stop, places: Sequence[int], error: float
    ) -> Iterator[tuple[Plan, Reading]]:
        """Yield the plans that are surely not what they are measured for, by the items at some places.

        One is surely none of the best `keep` where it is surely worse than as many others.
        """
        if stop.keep is None:
            if stop.than is None or stop.floor is None or len(stop.than.items) != len(self.items):
                return
            for plan, values in list(open_plans.items()):
                ceiling = self._objective.likely_ceiling(values, stop.than, places, error)
                if ceiling < stop.floor:
                    yield plan, Reading(None, None, tuple(values), ceiling=min(100.0, ceiling))
            return
        scores = {plan: self._objective.score_at(values, places) for plan, values in open_plans.items()}
        ranked = sorted(open_plans, key=scores.__getitem__, reverse=True)
        best = {plan: Reading(None, None, tuple(open_plans[plan])) for plan in ranked[: stop.keep]}
        for plan in ranked[stop.keep :]:
            values = open_plans[plan]
            if all(
                self._objective.likely_ceiling(values, better, places, error) < scores[other] for other, better in best.items()
            ):
                # Worse than others is all that is known: on the items left it could still have any score.
                yield plan, Reading(None, None, tuple(values), ceiling=min(100.0, self._objective.ceiling(values)))

    def _likely(self, plans: Sequence[Plan], stop: Stop) -> list[Plan]:
        """Return the plans that are worth measuring along with those that were asked for, in the same reading of all weights.

        On an accelerator a reading takes longer than what is computed in it, on a processor it does not.
        """
        cache = self._prefix_cache()
        known = all((plan, item) in self._known(plan) for plan in plans for item in self.items)
        if known or cache.model.device.type == "cpu" or self._elsewhere is not None:
            return []
        return list(islice(stop.ahead, max(0, min(AHEAD, cache.plans_at_once(self.items) - len(plans)))))

    def _look_ahead(self, plans: Mapping[Plan, Reading | None]) -> None:
        """Measure plans whole, as many together as there is memory for: what gives one up early would save less than it reads."""
        cache = self._prefix_cache()
        groups = [group for of_round in self._rounds for group in cache.groups(of_round)]
        open_items = {plan: self._values_in(started) for plan, started in plans.items()}
        if self._elsewhere is not None:
            with self._asked(open_items, groups, whole=True):
                for group, (plan, values) in ((group, one) for group in groups for one in open_items.items()):
                    self._fill_in(values, plan, group)
            return
        step = cache.plans_at_once(self.items)
        for start in range(0, len(plans), step):
            questions = [
                partial(self._ahead_of, plan, group)
                for group in groups
                for plan in list(plans)[start : start + step]
                if any(open_items[plan][self._place[item]] is None for item in group)
            ]
            answers_of(cache.model, questions)

    def _asked(
        self, open_plans: Mapping[Plan, PartialValues], groups: Sequence[tuple[Item, ...]], *, whole: bool = False
    ) -> AbstractContextManager[None]:
        """Return the context in which workers measure what plans have no values of yet; an empty one without workers."""
        if self._elsewhere is None:
            return nullcontext()
        wanted = {group: [plan for plan, values in open_plans.items() if self._wants(plan, values, group)] for group in groups}
        return self._elsewhere.asked(wanted, self._modules_of, whole=whole)

    def _wants(self, plan: Plan, values: PartialValues, group: Sequence[Item]) -> bool:
        known = self._known(plan)
        return any(values[self._place[item]] is None and (plan, item) not in known for item in group)

    def _ahead_of(self, plan: Plan, group: Sequence[Item], ahead: LookAhead | None) -> None:
        self._values_of(StagedModel(self._prefix_cache(), plan, self._modules_of(plan), ahead=ahead), group)

    def _depth_first(self, plan: Plan) -> tuple[tuple[str, str], ...]:
        """Return what plans that begin alike begin alike in."""
        count = self._prefix_cache().model.block_count
        return tuple(zip(plan.states("prefill", count), plan.states("decode", count), strict=True))

    def _values_in(self, started: Reading | None) -> PartialValues:
        return list(started.items) if started and started.items else [None] * len(self.items)

    def _fill_in(self, values: PartialValues, plan: Plan, group: Sequence[Item]) -> bool:
        """Measure some items under a plan; return whether any had no value yet."""
        if all(values[self._place[item]] is not None for item in group):
            return False
        staged = StagedModel(self._prefix_cache(), plan, self._modules_of(plan))
        for item, value in zip(group, self._values_of(staged, group), strict=True):
            values[self._place[item]] = value
        return True

    def _values_of(self, staged: StagedModel, group: Sequence[Item]) -> list[float]:
        known = self._known(staged.plan)
        if not all((staged.plan, item) in known for item in group):
            values = None if self._elsewhere is None else self._elsewhere.values(staged.plan, tuple(group))
            values = self._objective.values(staged, group) if values is None else values
            known.update(zip([(staged.plan, item) for item in group], values, strict=True))
        return [known[staged.plan, item] for item in group]


def _pairs(count: int, keep: int | None) -> int:
    """Return how many comparisons may each be wrong alone: of each of the best `keep` of some plans with each that is worse."""
    if keep is None:
        return 1
    keep = min(keep, count)
    return max(1, keep * count - keep * (keep + 1) // 2)


def in_rounds(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """Return items in rounds of at least 16, at most 8 of them, drawn at random but always the same ones."""
    shuffled = list(items)
    Random("rounds").shuffle(shuffled)  # noqa: S311 - a reproducible order, nothing secret
    count = max(1, min(MOST_ROUNDS, len(items) // FEWEST_IN_ROUND))
    return [tuple(shuffled[start::count]) for start in range(count)]


def _turns(
    groups: Sequence[Sequence[Item]], open_plans: Mapping[Plan, PartialValues]
) -> Iterator[tuple[Sequence[Item], Plan, PartialValues, float]]:
    """Yield each group of items with each plan that is then open, and how many items are through behind it."""
    through = 0
    for group in groups:
        plans = list(open_plans.items())
        for number, (plan, values) in enumerate(plans, start=1):
            yield group, plan, values, through + len(group) * number / len(plans)
        through += len(group)
