"""What a selector of K/V is given: the finished pair, and how decode looks at prompts in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pdtrim_core.api.selection_facts import SelectionFacts
from pdtrim_core.data.items import Item
from pdtrim_core.execution.attention_mass import masses, watchable
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.plan import FirstToken, Plan
from pdtrim_core.plan.selections import Selection


def _say_nothing(text: str) -> None:
    del text


@dataclass(frozen=True)
class SelectionContext:
    """A pair with all that the steps before gave to it, and calibration items to see it read.

    `note` says something to the user.
    """

    model: BlockModel
    plan: Plan
    modules: Modules
    items: Sequence[Item]
    calibration: str = ""
    first_token: FirstToken = "decode"
    note: Callable[[str], None] = _say_nothing

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks of decode that have attention, from shallow to deep: where they are placed, of a merged block the first."""
        return tuple(slot.block for slot in self.plan.slots(self.model.block_count))

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """The tokens of each item's prompt whose K/V prefill hands over."""
        return tuple(tokens for _, tokens in watchable(self.items, self.first_token))

    @property
    def facts(self) -> SelectionFacts:
        """What was known before anything was measured."""
        return SelectionFacts(self.model.name, self.calibration, self.prompt_tokens)

    def masses(self, selections: Sequence[Selection], *, texts: Sequence[int] | None = None) -> list[Tensor]:
        """Return for each selection the attention that falls on what it reads of the prompts, `[texts, heads]`, 0 to 1.

        It is the mean over the tokens that decode runs behind a prompt, up to the end of the right choice, in the pair as it is.
        What is left to 1 falls on the rest of the prompt, and on decode's own tokens, which are always read. `texts` are the
        numbers of those to look at, as in `prompt_tokens`, or all. The pair goes through them once a call, so ask for all
        selections at once; no more is kept than what is returned. Raises `PdtrimError` for a block that decode does not run, and
        for a model whose attention gives no weights.
        """
        pair = TwoPhaseModel(self.model, self.plan.unselected, self.modules, first_token=self.first_token)
        items = [item for item, _ in watchable(self.items, self.first_token)]
        return masses(pair, items if texts is None else [items[number] for number in texts], selections)
