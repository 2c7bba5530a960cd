"""A splitter: decides what of decode's removal prefill loses, too."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from random import Random

from pydantic import Field

from pdtrim_core.api import Plan, Request, Result, SearchSpace, StageSplitter, hookimpl


class Example(StageSplitter):
    """Gives prefill back the elements that bring most, each measured alone."""

    name = "example"

    at_most: int = Field(2, ge=0, description="elements that prefill is given back")
    least: float = Field(1.0, ge=0, description="gain in points that an element must bring")

    def split(self, plan: Plan, space: SearchSpace, rng: Random) -> Generator[Request, Result, Plan]:
        """Yield trial plans with the same decode, and return the final one."""
        del space, rng
        start = yield plan
        # Plans that do not depend on each other's values go out together.
        values = yield [Plan(prefill=plan.decode.without(element), decode=plan.decode) for element in plan.decode]
        gains = sorted(
            ((value - start, element) for value, element in zip(values, plan.decode, strict=True)), key=lambda g: -g[0]
        )
        kept_in_prefill = [element for gain, element in gains[: self.at_most] if gain >= self.least]
        return Plan(prefill=plan.decode.without(*kept_in_prefill), decode=plan.decode)

    def steps(self, space: SearchSpace) -> int | None:
        """Return about how many measurements a split takes, for the progress bar."""
        return space.count + 1


@hookimpl
def pdtrim_splitters() -> Iterable[type[StageSplitter]]:
    """Yield the splitters of this package."""
    yield Example
