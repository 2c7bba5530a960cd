"""The loop around searchers and splitters: they make requests, the core measures, remembers and keeps the best.

Measuring is somebody else's (`Measure`), so that everything here is torch-free and can be tested on a table of numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

from pdtrim_core.api.requests import AtLeast, BestOf, Note, Probe, Requests, Result
from pdtrim_core.data.readings import DIGITS, Candidate, Reading, Score, Underway
from pdtrim_core.errors import PluginError, blame
from pdtrim_core.plan.elements import Element
from pdtrim_core.plan.plan import Plan
from pdtrim_core.search.out_of_time import IsOver, OutOfTime, TimeIsOver
from pdtrim_core.search.stopping import WHOLE, Stop
from pdtrim_core.wording import shortened

T = TypeVar("T")

MOST_AHEAD = 64
"""Plans at most that are looked at of those that are likely to come next."""
TOLD = 200
"""Characters of a request that an error tells."""


class Measure(Protocol):
    """Measures a plan; may stop early once its score cannot reach `floor`."""

    def __call__(self, plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        """Return the reading; `started` is an earlier one of the same plan that was cut short, to go on from."""


class MeasureTogether(Protocol):
    """Measures several plans side by side; may give up those that are not what they are measured for."""

    def __call__(self, plans: Sequence[Plan], stop: Stop, started: Mapping[Plan, Reading]) -> Iterator[tuple[Plan, Reading]]:
        """Yield the readings in any order; `started` are earlier ones that were cut short, to go on from.

        What is yielded as `Underway` is recorded, and the plan's own reading comes later.
        """


def never() -> bool:
    """Tell that there is time: what a search without a limit is told."""
    return False


@dataclass
class Tally:
    """How many candidates were measured whole, remembered, and cut short."""

    measured: int = 0
    remembered: int = 0
    cut_short: int = 0


class Ledger:
    """Every measurement of a run, made once: remembered, recorded as it happens, and counted.

    `known` are readings of an earlier, interrupted run. `record` is called with each new reading before it is used.
    """

    def __init__(
        self,
        measure: Measure,
        *,
        together: MeasureTogether | None = None,
        known: Mapping[Plan, Reading] | None = None,
        record: Callable[[Plan, Reading], None] = lambda plan, reading: None,
        notify: Callable[[Candidate], None] = lambda candidate: None,
    ) -> None:
        self._together = together or one_by_one(measure)
        self._known = dict(known or {})
        self._record = record
        self._notify = notify
        self.tally = Tally()
        self._best: float | None = None
        self._requested = 0
        self._is_over: IsOver = never

    @contextmanager
    def limited(self, is_over: IsOver) -> Iterator[None]:
        """Measure as long as `is_over` says that there is time."""
        self._is_over = is_over
        try:
            yield
        finally:
            self._is_over = never

    def restart_best(self) -> None:
        """Forget the best so far, at the beginning and the end of a search or a split."""
        self._best = None

    def reading(self, plan: Plan, floor: float | None = None, *, may_win: bool = True) -> Reading:
        """Return the reading of a plan, exact if it reaches the floor (or none is given).

        A probe may not win: it does not count for the best so far.
        """
        return self.readings({plan: may_win}, Stop(floor))[plan]

    def readings(self, plans: Mapping[Plan, bool], stop: Stop = WHOLE) -> dict[Plan, Reading]:
        """Return the readings of plans, each given with whether it may win; exact for those that are what `stop` asks for.

        Raises `TimeIsOver` at the beginning and on the way, once that is so (see `limited`).
        """
        self._check_time()
        enough = [plan for plan in plans if self._is_enough(plan, stop)]
        for plan in enough:
            self.tally.remembered += 1
            self._tell(plan, self._known[plan], stop.floor, may_win=plans[plan], remembered=True, seconds=0.0)
        wanted = [plan for plan in plans if plan not in enough]
        if not wanted:
            return {plan: self._known[plan] for plan in plans}
        # What is known already is a competitor of what is not.
        beside = enough if stop.keep else []
        started, open_plans = time.perf_counter(), set(wanted)
        for plan, measured in self._together([*wanted, *beside], stop, self._known_of([*wanted, *beside])):
            if plan in beside:
                continue
            reading = _rounded(measured)
            self._record(plan, reading)
            self._known[plan] = reading
            if isinstance(measured, Underway):
                self._check_time()
                continue
            self.tally.measured += reading.score is not None
            self.tally.cut_short += reading.score is None
            now = time.perf_counter()
            self._tell(plan, reading, stop.floor, may_win=plans[plan], remembered=False, seconds=now - started)
            started = now
            open_plans.discard(plan)
            if open_plans:
                self._check_time()
        return {plan: self._known[plan] for plan in plans}

    def _check_time(self) -> None:
        if self._is_over():
            raise TimeIsOver

    def _is_enough(self, plan: Plan, stop: Stop) -> bool:
        """Tell whether what is known of a plan tells all that is asked."""
        known = self._known.get(plan)
        return known is not None and (known.score is not None or (stop.floor is not None and known.ceiling < stop.floor))

    def _known_of(self, plans: Iterable[Plan]) -> dict[Plan, Reading]:
        return {plan: self._known[plan] for plan in plans if plan in self._known}

    def scores(self, plans: Mapping[Plan, bool], stop: Stop = WHOLE) -> dict[Plan, Score | None]:
        """Return the scores of plans, each given with whether it may win; None for those that are not what `stop` asks for.

        Raises `TimeIsOver` as `readings` does.
        """
        found: dict[Plan, Score | None] = {}
        for plan, reading in self.readings(plans, stop).items():
            missed = reading.score is None or (stop.floor is not None and reading.score < stop.floor)
            found[plan] = None if missed else Score(reading)
        return found

    def exact(self, plan: Plan) -> Score:
        """Return the score of a plan, measured to the end; it is measured for itself, and is no candidate for the best."""
        return Score(self.reading(plan, may_win=False))

    def known(self, plan: Plan) -> Score | None:
        """Return the score of a plan if it has been measured to the end already."""
        reading = self._known.get(plan)
        return None if reading is None or reading.score is None else Score(reading)

    def latest(self, plan: Plan) -> Reading:
        """Return the last reading of a plan that has been requested, whole or cut short."""
        return self._known[plan]

    def _tell(
        self, plan: Plan, reading: Reading, floor: float | None, *, may_win: bool, remembered: bool, seconds: float
    ) -> None:
        self._requested += 1
        wins = may_win and reading.score is not None and (floor is None or reading.score >= floor)
        if reading.score is not None and wins and (self._best is None or reading.score > self._best):
            self._best = reading.score
        self._notify(Candidate(self._requested, plan, reading, self._best, remembered, seconds))


def one_by_one(measure: Measure) -> MeasureTogether:
    """Return what measures several plans with a function that measures one, to the end or to its floor."""

    def together(plans: Sequence[Plan], stop: Stop, started: Mapping[Plan, Reading]) -> Iterator[tuple[Plan, Reading]]:
        return ((plan, measure(plan, stop.floor, started.get(plan))) for plan in plans)

    return together


def _rounded(reading: Reading) -> Reading:
    if reading.score is None:
        return reading
    return replace(reading, score=round(reading.score, DIGITS))


@dataclass(frozen=True)
class BestPlan:
    """The best plan that was measured, first seen on ties, with its score."""

    plan: Plan
    score: Score


@dataclass(frozen=True)
class Exchange:
    """A request of a searcher or splitter, and what came of it.

    `floor` is the score that the plan had to reach to be accepted, `temperature` (points of the score) is that of annealing,
    `may_win` tells that the plan may be the result.
    """

    plan: Plan
    reading: Reading
    floor: float | None
    temperature: float | None
    may_win: bool


def drive(
    requests: Requests[T],
    ledger: Ledger,
    *,
    label: str,
    problems: Callable[[Plan], Iterable[str]] = lambda plan: (),
    note: Callable[[str], None] = lambda text: None,
    told: Callable[[Exchange], None] = lambda exchange: None,
) -> tuple[BestPlan | None, T]:
    """Run a searcher or splitter to its end; return the best plan that it requested and what it returned.

    `label` names the component in errors, `problems` says why a plan may not be requested, `note` takes what it has to
    say, `told` is called with each request and its result. Raises `PluginError` when the component raises, or yields something
    that is no `Request`, and `OutOfTime` once the ledger's time is over.
    """
    result: Result = None
    found = _Found(ledger, told)
    ledger.restart_best()
    while True:
        with blame(label):
            try:
                request = requests.send(result)
            except StopIteration as end:
                # What is measured from here on is compared with nothing.
                ledger.restart_best()
                return found.best, end.value
        if isinstance(request, Note):
            if not isinstance(request.text, str):
                raise PluginError(f"{label} yielded a Note of {shortened(repr(request.text))}: its text must be a str")
            note(request.text)
            result = None
            continue
        wanted = _wanted(request, label, problems)
        try:
            scores = found.measure(request, wanted, _ahead(request, label, problems))
        except TimeIsOver:
            with blame(label):
                requests.close()
            raise found.out_of_time(wanted) from None
        result = scores if isinstance(request, list | BestOf) else scores[0]


class _Found:
    """What one searcher or splitter has had measured."""

    def __init__(self, ledger: Ledger, told: Callable[[Exchange], None]) -> None:
        self.best: BestPlan | None = None
        self._ledger = ledger
        self._told = told
        self._probes: dict[Plan, Score] = {}
        self._asked: set[Element] = set()

    def measure(self, request: Any, wanted: Sequence[tuple[Plan, bool]], ahead: Iterable[Plan]) -> list[Score | None]:
        """Measure the plans of a request; return their scores. Raises `TimeIsOver`, with those that were measured taken in."""
        stop = _stop_of(request, ahead)
        temperature = request.temperature if isinstance(request, AtLeast) else None
        self._asked.update(element for plan, _ in wanted for element in plan.decode)
        try:
            by_plan = self._ledger.scores({plan: (plan, True) in wanted for plan, _ in wanted}, stop)
        except TimeIsOver:
            self._take({plan: self._ledger.known(plan) for plan, _ in wanted}, wanted, stop, temperature, late=True)
            raise
        self._take(by_plan, wanted, stop, temperature)
        return [by_plan[plan] for plan, _ in wanted]

    def _take(
        self,
        by_plan: Mapping[Plan, Score | None],
        wanted: Sequence[tuple[Plan, bool]],
        stop: Stop,
        temperature: float | None,
        *,
        late: bool = False,
    ) -> None:
        """Take in the scores of a request; one that came too `late` has them for some of its plans."""
        for plan, is_result in wanted:
            score = by_plan[plan]
            if late and score is None:
                continue
            self._told(Exchange(plan, self._ledger.latest(plan), stop.floor, temperature, is_result))
            if score is None:
                continue
            if not is_result:
                self._probes[plan] = score
            elif self.best is None or score > self.best.score:
                self.best = BestPlan(plan, score)

    def out_of_time(self, pending: Sequence[tuple[Plan, bool]]) -> OutOfTime:
        """Return what to raise for a component that was stopped while plans of it were pending."""
        return OutOfTime(None if self.best is None else self.best.plan, self._probes, pending, self._asked)


def drive_split(
    requests: Requests[Plan], ledger: Ledger, given: Plan, *, label: str, note: Callable[[str], None] = lambda text: None
) -> Plan:
    """Run a splitter to its end; return the plan that it made of the one it was given.

    Raises `PluginError` as `drive` does, where the plan has another decode, and where it is neither the given one nor one that
    the splitter measured.
    """
    measured = {given}

    def problems(plan: Plan) -> Iterable[str]:
        return [] if plan.decode == given.decode else ["a splitter may change prefill only"]

    def told(exchange: Exchange) -> None:
        if exchange.reading.score is not None:
            measured.add(exchange.plan)

    _, plan = drive(requests, ledger, label=label, problems=problems, note=note, told=told)
    if not isinstance(plan, Plan) or plan.decode != given.decode:
        raise PluginError(f"{label} returned {plan}: it must return a plan with the decode that it was given")
    if plan not in measured:
        raise PluginError(
            f"{label} returned {plan}, which it did not measure: it must return a plan that it measured, or the one it was given"
        )
    return plan


def _ahead(request: Any, label: str, problems: Callable[[Plan], Iterable[str]]) -> Iterator[Plan]:
    """Yield the plans that are likely to come next; what may not be requested is refused when it is requested."""
    if isinstance(request, AtLeast):
        with blame(label):
            for plan in islice(request.otherwise, MOST_AHEAD):
                if isinstance(plan, Plan) and not any(problems(plan)):
                    yield plan


def _stop_of(request: Any, ahead: Iterable[Plan]) -> Stop:
    """Return what the plans of a request are measured for."""
    if isinstance(request, AtLeast):
        return Stop(request.floor, None if request.than is None else request.than.reading, ahead=ahead)
    return Stop(keep=request.keep) if isinstance(request, BestOf) else WHOLE


def _wanted(request: Any, label: str, problems: Callable[[Plan], Iterable[str]]) -> list[tuple[Plan, bool]]:
    """Return the plans of a request, each with whether it may be the result. Raises `PluginError` for one not to be made."""
    what = f"{label} yielded {shortened(repr(request), TOLD)}"
    entries = [request]
    if isinstance(request, BestOf):
        if not _is_whole(request.keep) or request.keep < 1:
            raise PluginError(
                f"{what}: of its plans at least one must be kept, so keep={shortened(repr(request.keep))} cannot be"
            )
        entries = list(request.plans) if isinstance(request.plans, tuple | list) else [None]
    elif isinstance(request, list):
        entries = request
    elif isinstance(request, AtLeast):
        _check_floor(request, what)
        entries = [request.plan]
    wanted = [(e.plan, False) if isinstance(e, Probe) else (e, True) for e in entries]
    if not all(isinstance(plan, Plan) for plan, _ in wanted):
        raise PluginError(
            f"{what}: it may yield a Plan or a Probe, a list of them, AtLeast(plan, floor), BestOf(plans, keep) with a tuple of "
            "them, or a Note"
        )
    for plan, is_result in wanted:
        for problem in problems(plan) if is_result else ():
            raise PluginError(f"{label} requested the plan {plan}: {problem}")
    return wanted


def _check_floor(request: AtLeast, what: str) -> None:
    """Raise `PluginError` for a floor, a temperature, plans or a score that are none."""
    if not _is_number(request.floor):
        raise PluginError(f"{what}: its floor must be a number, not {shortened(repr(request.floor))}")
    if request.temperature is not None and not _is_number(request.temperature):
        raise PluginError(f"{what}: its temperature must be a number or None, not {shortened(repr(request.temperature))}")
    if not isinstance(request.otherwise, Iterable):
        raise PluginError(f"{what}: its otherwise must be plans, not {shortened(repr(request.otherwise))}")
    if request.than is not None and not isinstance(request.than, Score):
        raise PluginError(
            f"{what}: its than must be the Score of another plan, as it was sent, or None, not {shortened(repr(request.than))}"
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
