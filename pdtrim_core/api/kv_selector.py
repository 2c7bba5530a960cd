"""The kind of component that says which tokens of a prompt the blocks of decode read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pdtrim_core.api.component import Component
from pdtrim_core.api.selection_facts import SelectionFacts
from pdtrim_core.plan.selections import Selection

if TYPE_CHECKING:
    from pdtrim_core.api.selection_context import SelectionContext


class KvSelector(Component):
    """Lets blocks of decode read only some of a prompt's K/V: the last step of a recipe, behind the number formats."""

    kind = "kv_selector"

    needs_attention: ClassVar[bool] = False
    """Whether it asks for attention: a model whose attention gives no weights is then refused before anything is measured."""
    selects: ClassVar[bool] = True
    """Whether a block may read less than all: exporters that cannot write that are then refused before anything is measured."""

    def problems(self, facts: SelectionFacts) -> list[str]:
        """Return why it cannot select on these prompts, a sentence each; a run asks before it measures anything."""
        del facts
        return []

    @abstractmethod
    def select(self, context: SelectionContext) -> Sequence[Selection]:
        """Return what is selected, at most once for a block of `context.blocks`; all others read whole prompts.

        The model must be left as it is.
        """
