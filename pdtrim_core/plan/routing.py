"""How the router of a mixture of experts chooses, and what that asks of the experts that stay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Routing:
    """How a router chooses the experts of a token: `top_k` of all, or of those in the best `groups_chosen` of `groups`.

    Groups are runs of neighbouring experts, all of one size. A router rates a group by its `rated_by` best experts. `parameters`
    are those that the router has for each expert.
    """

    top_k: int
    parameters: int
    groups: int = 1
    groups_chosen: int = 1
    rated_by: int = 1

    @property
    def least(self) -> int:
        """The number of experts that each group must keep, so that a token still gets all of its experts."""
        return max(self.rated_by, math.ceil(self.top_k / self.groups_chosen))

    def groups_of(self, count: int) -> list[range]:
        """Return the experts of each group, where there are `count` of them in all."""
        size = count // self.groups
        return [range(group * size, (group + 1) * size) for group in range(self.groups)]

    def problem(self, count: int, gone: Sequence[int]) -> str:
        """Return why some of `count` experts cannot go, as the end of a sentence; nothing where they can."""
        kept, each = count - len(gone), self.least
        if kept < each * self.groups:
            chosen = f"sends each token to {self.top_k}" if self.groups == 1 else f"chooses among {self.groups} groups"
            what = f"{each * self.groups} must stay" if self.groups == 1 else f"{each} of each must stay"
            return f"would keep {kept} of its {count} experts, and its router {chosen}: {what} at least"
        lost = Counter(expert * self.groups // count for expert in gone)
        if gone and len({lost[group] for group in range(self.groups)}) > 1:
            return f"chooses among {self.groups} groups of experts, which must stay alike: remove the same number from each"
        return ""
