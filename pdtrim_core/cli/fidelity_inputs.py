"""What `pdtrim-core eval --fidelity` measures on, as its options say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pdtrim_core.errors import PdtrimError

if TYPE_CHECKING:
    from pdtrim_core.fidelity.inputs import Inputs
    from pdtrim_core.pipeline.open_run import LoadedRun

LEAST_TOKENS = 64
"""Tokens of a prompt of a needle test, at least."""
SHARE = 0.5
"""The part of a window of text that is prompt, unless another is asked for."""


@dataclass(frozen=True)
class FidelityInputs:
    """Options that choose inputs; without any of them those are the items that the run held out."""

    data: Path | None
    tasks: Sequence[str]
    text: Path | None
    prompt_tokens: int | None
    items: int | None
    prompt_share: float
    answer_tokens: int | None

    def check(self) -> None:
        """Raise `PdtrimError` for options that do not go together, and for files that are not there or no text."""
        if self.data is not None and (self.text is not None or self.prompt_tokens is not None):
            raise PdtrimError(
                "--data has items of its own: leave out --text and --prompt-tokens, or measure on them in a run of its own"
            )
        if self.items is not None and self.data is None and self.text is None and self.prompt_tokens is None:
            raise PdtrimError(
                "--items chooses among the items of --data, --text or --prompt-tokens: without those all held-out items are used"
            )
        if self.data is not None:
            from pdtrim_core.harness.fidelity_items import tasks_in  # noqa: PLC0415 - imports torch

            tasks_in(self.data, self.tasks)
        if self.text is not None:
            assert self._text

    @property
    def length(self) -> int | None:
        """Tokens of an answer at most; None for the run's own."""
        from pdtrim_core.fidelity.needle import NEEDLE_ANSWER_TOKENS  # noqa: PLC0415 - imports torch

        return self.answer_tokens or (None if self.prompt_tokens is None else NEEDLE_ANSWER_TOKENS)

    @cached_property
    def _text(self) -> str:
        from pdtrim_core.fidelity.inputs import read_whole_text  # noqa: PLC0415 - imports torch

        return "" if self.text is None else read_whole_text(self.text)

    def opened(self, run: LoadedRun) -> Iterator[Inputs | None]:
        """Yield what to measure on, one after the other; None stands for the items that the run held out."""
        from pdtrim_core.fidelity.inputs import ITEMS, name_of, text_inputs  # noqa: PLC0415 - imports torch
        from pdtrim_core.fidelity.needle import NEEDLES, needle_inputs  # noqa: PLC0415 - the same
        from pdtrim_core.harness.fidelity_items import benchmark_inputs, tasks_in  # noqa: PLC0415 - the same

        share = self.prompt_share or SHARE
        name = "" if self.text is None else name_of(self.text)
        if self.data is not None:
            for task in tasks_in(self.data, self.tasks):
                yield benchmark_inputs(self.data, task, run.dense.tokenizer, share=share, count=self.items or ITEMS)
        elif self.prompt_tokens is not None:
            yield needle_inputs(run.dense, self.prompt_tokens, count=self.items or NEEDLES, text=self._text, name=name)
        elif self.text is not None:
            yield text_inputs(self._text, name, run.dense.tokenizer, share=share, count=self.items or ITEMS)
        else:
            yield None
