"""Passes: batches on their way through the blocks, one batch after the other, or all of them block by block.

What runs blocks is written for one batch, as a generator that yields the number of each block before it runs it. Where the
weights are in memory a pass is run to its end before the next begins. Where they stay on the disk all passes wait in front of a
block until every other one has come there, so that the block is read once for all of them. A pass cannot tell which of the two
it is in, so that its numbers are the same to the last bit.

A pass must not hold what is meant for it alone, such as a hook or torch's inference mode, while it yields: other passes then run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Pass = Generator[int, None, T]
"""A batch on its way: it yields the number of each block before it runs it, and returns what it has made."""


def results_of(passes: Iterable[Pass[T]], *, together: bool) -> Iterator[T]:
    """Yield what passes return, in their order; with `together` all of them go block by block, and none ends before all have."""
    if together:
        yield from _block_by_block(passes)
        return
    for one in passes:
        yield result_of(one)


def result_of(one: Pass[T]) -> T:
    """Run a pass to its end and return its result."""
    while True:
        try:
            next(one)
        except StopIteration as end:
            found: T = end.value
            return found


def _block_by_block(passes: Iterable[Pass[T]]) -> Iterator[T]:
    found: dict[int, T] = {}
    waiting: dict[int, list[tuple[int, Pass[T]]]] = {}

    def go_on(number: int, one: Pass[T]) -> None:
        try:
            waiting.setdefault(next(one), []).append((number, one))
        except StopIteration as end:
            found[number] = end.value

    for number, one in enumerate(passes):
        go_on(number, one)
    block = 0
    while waiting:
        # Upwards as long as anything waits there: a pass that goes back to a lower block does not take all others along.
        block = min((ahead for ahead in waiting if ahead >= block), default=min(waiting))
        for number, one in sorted(waiting.pop(block), key=lambda waits: waits[0]):
            go_on(number, one)
    yield from (found.pop(number) for number in sorted(found))
