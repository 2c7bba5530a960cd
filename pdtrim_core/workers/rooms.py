"""How many workers a cluster has room for, and what each of them gets of its machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pdtrim_core.errors import PdtrimError

FEW = 2
PROCESSORS_EACH = 4
"""Processors of a worker where nobody said how many workers there are to be, if that makes at least a few of them."""


@dataclass(frozen=True)
class Machine:
    """The processors and accelerators of one machine of a cluster."""

    processors: int
    accelerators: int = 0


@dataclass(frozen=True)
class Room:
    """So many workers, each with so many processors and with that share of accelerators."""

    workers: int
    processors: int
    accelerators: float


def room_for(wanted: int | None, machines: Sequence[Machine]) -> Room:
    """Return the room for so many workers; without a number one an accelerator, or else one for every few processors.

    Raises `PdtrimError` where there are more workers than processors.
    """
    processors, accelerators = sum(one.processors for one in machines), sum(one.accelerators for one in machines)
    count = wanted or accelerators or max(1, min(processors, max(FEW, processors // PROCESSORS_EACH)))
    if count > processors:
        where = "this machine" if len(machines) == 1 else f"the cluster of {len(machines)} machines"
        raise PdtrimError(f"--workers {count}: {where} has {processors} processors, and each worker needs one: ask for fewer")
    # Where machines differ, what the greater ones have more than the others may stay idle.
    each = next(each for each in range(processors // count, 0, -1) if sum(one.processors // each for one in machines) >= count)
    together = 0 if not accelerators else next(together for together in range(1, count + 1) if accelerators * together >= count)
    return Room(count, each, 1 / together if together else 0.0)
