"""Ends of prompts for the blocks whose attention rests on them: our reading of the paper's appendix C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from pdtrim_core.api import Edges, KvSelector, Selection, SelectionFacts

if TYPE_CHECKING:
    from pdtrim_core.api import SelectionContext


class Paper(KvSelector):
    """Lets a block of decode read only the first and the last tokens of a prompt where its attention rests on those.

    A block is selected where at least `gamma` of the attention of decode's tokens falls on both ends together: the mean over
    heads and calibration texts. Half of what is kept is at each end, and at least 16 tokens. Public are the values p = 0.3 and
    gamma = 0.75 and that entries of the first and last tokens are used in selected layers; the rest is our reading.
    """

    name = "paper"
    cites = "PDTrim, versions 1 to 3, App. C (arXiv:2509.04467)"
    needs_attention = True

    keep: float = Field(0.3, gt=0, le=1, description="share of a prompt's tokens that a selected block reads, the paper's p")
    gamma: float = Field(0.75, ge=0, le=1, description="attention on what is read from which on a block is selected")
    share: Literal["kept", "removed"] = Field(
        "kept", description="what `keep` is a share of: kept, or removed, since which of them p is in the paper is not public"
    )
    texts: int = Field(32, gt=0, description="calibration items that attention is looked at in, at most")

    @model_validator(mode="after")
    def _something_is_kept(self) -> Self:
        if self.share == "removed" and self.keep == 1:
            raise ValueError('keep = 1 with share = "removed" leaves nothing to read: say less than 1, or share = "kept"')
        return self

    def problems(self, facts: SelectionFacts) -> list[str]:
        """Return whether no prompt is long enough for anything to be left out."""
        if self._kept == 1 or any(map(self._leaves_out, facts.prompt_tokens)):
            return []
        longest = max(facts.prompt_tokens, default=0)
        what = (
            f"the prompts of calibration '{facts.calibration}' have {longest} tokens at most, of which every block would read all"
        )
        advice = 'such as calibration.use = "text" with a larger calibration.words, or files of your own with "jsonl"'
        return [f"{what}: choose longer ones, {advice}"]

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        """Return both ends for the blocks whose attention rests on them, in texts of which something is left out."""
        if self._kept == 1:
            return ()
        ends = [self._ends(block) for block in context.blocks]
        texts = [number for number, tokens in enumerate(context.prompt_tokens) if self._leaves_out(tokens)][: self.texts]
        masses = [float(mass.mean()) for mass in context.masses(ends, texts=texts)]
        context.note(
            f"attention on the ends of {len(texts)} prompts is {min(masses):.2f} to {max(masses):.2f} by block of decode; from "
            f"{self.gamma:g} on a block reads only those"
        )
        return [one for one, mass in zip(ends, masses, strict=True) if mass >= self.gamma]

    @property
    def _kept(self) -> float:
        return self.keep if self.share == "kept" else 1 - self.keep

    def _ends(self, block: int) -> Edges:
        return Edges(block, self._kept / 2, self._kept / 2)

    def _leaves_out(self, tokens: int) -> bool:
        return sum(self._ends(0).read(tokens)) < tokens
