"""Guards around the functions of plugins, so that pluggy can call them and one that fails stops no other.

pluggy ends the whole call of a hook where one implementation raises. So what is registered with it are guards: each has the
options of the function that it replaces (`tryfirst`, `trylast`, `wrapper`), which leaves the order to pluggy, passes the
call on, traces it, and keeps a failure as a `Fault` for the host to deal with.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from pdtrim_core.api import hookspecs
from pdtrim_core.errors import reason_of
from pdtrim_core.host.discovery import Origin
from pdtrim_core.host.implementations import Implementation, Sort

Guard = Callable[..., object]
Accept = Callable[[Implementation, Any], object]
"""Takes what an implementation returned, and returns what others see of it."""


@dataclass(frozen=True)
class Fault:
    """An implementation that failed when it was called."""

    implementation: Implementation
    error: Exception

    @property
    def origin(self) -> Origin:
        """Whose fault it is."""
        return self.implementation.origin

    def __str__(self) -> str:
        return reason_of(self.error, kind=True)


@dataclass
class Calls:
    """What the guards of a host share: who failed, and whose listeners are muted."""

    faults: list[Fault] = field(default_factory=list)
    muted: set[Origin] = field(default_factory=set)

    def leave_out(self, implementation: Implementation) -> bool:
        """Return whether an implementation is not to be called."""
        return implementation.sort is Sort.EVENT and implementation.origin in self.muted


def guard(implementation: Implementation, calls: Calls, accept: Accept) -> Guard:
    """Return what to register with pluggy in place of an implementation.

    The guard takes all the arguments of the hook, which a trace shows, and passes on those that the function takes.
    """
    around = _around_wrapper if implementation.wrapper else _around
    spec = getattr(hookspecs, implementation.hook)
    mark = hookspecs.hookimpl(
        specname=implementation.hook,
        tryfirst=implementation.tryfirst,
        trylast=implementation.trylast,
        wrapper=implementation.wrapper,
    )
    return mark(wraps(spec)(around(implementation, calls, accept)))


def _around(implementation: Implementation, calls: Calls, accept: Accept) -> Guard:
    def guarded(*given: object) -> object:
        if calls.leave_out(implementation):
            return None
        facts = implementation.facts(given)
        try:
            with implementation.traced(facts) as found:
                found.answer = implementation.answer(implementation.call(facts))
            return accept(implementation, found.answer)
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is a fault of its plugin
            calls.faults.append(Fault(implementation, error))
            return None

    return guarded


def _around_wrapper(implementation: Implementation, calls: Calls, accept: Accept) -> Guard:
    def guarded(*given: object) -> Generator[None, object, object]:
        if calls.leave_out(implementation):
            return (yield)
        facts = implementation.facts(given)
        begun, inner = False, None
        interrupt: BaseException | None = None
        try:
            with implementation.traced(facts) as found, closing(implementation.call(facts)) as wrapper:
                _begin(wrapper)
                begun = True
                try:
                    inner = yield
                except BaseException as stop:
                    interrupt = stop  # guards let no failure through, so the run is being stopped: the wrapper is closed
                    raise
                returned = _end(wrapper, inner)
                found.answer = None if returned is None else implementation.answer(returned)
            return inner if found.answer is None else accept(implementation, found.answer)
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it raises is a fault of its plugin
            calls.faults.append(Fault(implementation, error))
        if interrupt is not None:
            raise interrupt  # the wrapper failed while it was closed
        return inner if begun else (yield)

    return guarded


def _begin(wrapper: Generator[object, object, object]) -> None:
    try:
        next(wrapper)
    except StopIteration:
        raise RuntimeError("the wrapper does not yield") from None


def _end(wrapper: Generator[object, object, object], inner: object) -> object:
    try:
        wrapper.send(inner)
    except StopIteration as done:
        return done.value
    raise RuntimeError("the wrapper yields more than once")
