"""How far apart two computations of the same numbers are, in units in the last place.

Which kernel a product gets, and so the order of its sums, depends on the processor, the number of threads, the shapes, and where
in memory the operands lie. Bits are equal only where all of these are; whatever else must agree, agrees to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 64
"""Units in the last place that what a tiny model computes may be off by. Sums of a few dozen numbers through six blocks are off
by about ten where their order differs; a wrong weight, mask or position makes tens of thousands."""


def units_apart(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, in units in the last place of the largest number that is expected.

    One unit for all numbers, since small ones are differences of large ones. Infinite where anything found is not finite.
    """
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), f"{found.shape} of {found.dtype} were found"
    largest = expected.abs().max()
    unit = torch.nextafter(largest, torch.full_like(largest, torch.inf)) - largest
    distance = float((found - expected).abs().max()) / float(unit)
    return distance if found.isfinite().all() else torch.inf
