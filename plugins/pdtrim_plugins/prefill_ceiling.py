"""The option `prefill_at_most` of searchers and splitters, and what they say where it is out of reach."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field


def ceiling_option(default: float) -> Any:
    """Return the pydantic field of an option `prefill_at_most`."""
    return Field(default, gt=0, le=1, description="FLOPs of prefill, at most, as a share of the dense model's")


def below_all_kv(who: str, ceiling: float, least: float, *, bound: bool = False) -> str:
    """Return the message for a ceiling below the least cost that a prefill can have, which is to compute nothing but K/V.

    `bound` says that `least` is that of the best removal there could be, before there is one.
    """
    cost = f"at least {rounded_up(least)}" if bound else f"{rounded_up(least)}"
    return (
        f"{who}: prefill_at_most = {ceiling:g} is out of reach, since the K/V of all blocks that decode runs cost {cost} of "
        "the dense prefill (the head included): raise prefill_at_most to that, or remove more blocks"
    )


def rounded_up(cost: float) -> float:
    """Return a cost with four digits, such that a ceiling of it is met."""
    return math.ceil(cost * 10_000) / 10_000
