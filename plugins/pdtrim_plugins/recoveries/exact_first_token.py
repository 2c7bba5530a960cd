"""The first token of a prompt as the dense model has it, whatever prefill has lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pdtrim_core.api import Recovery

if TYPE_CHECKING:
    from pdtrim_core.api import RecoveryContext


class ExactFirstToken(Recovery):
    """Gives prefill a table of the dense model's hidden states of first tokens, at no cost when the pair runs.

    All tokens attend to the first one of their prompt most of all, and its hidden states are thousands of times longer than
    those of others. They depend on that token alone: where prefill has lost something, they are known beforehand for each
    token that a prompt may begin with. The table has those that the tokenizer and its chat template put in front of a text,
    then the most frequent first ones of the recipe's items and of the training texts, then the most frequent ones of all.
    Models that have learned to attend so give all tokens about the same states there, so that one that is not in the table is
    best given the mean of those that are.
    """

    name = "exact-first-token"
    streams: ClassVar[bool] = True

    tokens: int = Field(4096, gt=0, description="tokens of text whose first ones are looked at")
    others: Literal["auto", "mean", "approximate"] = Field(
        "auto",
        description="states of a first token that is not in the table: the mean of those that are, what prefill makes of it, or "
        "the one of the two with which the pair is nearer to the dense model",
    )
    tokens_at_most: int = Field(256, gt=0, description="first tokens that the table has at most")

    def recover(self, context: RecoveryContext) -> None:
        """Keep the table, and say how many of the training texts begin with a token in it."""
        counts = Counter(text.prompt_of(0)[0] for text in context.texts)
        anywhere = Counter(token for text in context.texts for token in text.prompt_of(0))
        frequent = (token for found in (counts, anywhere) for token, _ in found.most_common())
        tokens = list(dict.fromkeys((*context.openings, *frequent)))[: self.tokens_at_most]
        if not context.keep_first_tokens(tokens, others=self.others == "mean"):
            if not self.optional:
                context.note(f"recovery '{self.name}': prefill loses nothing, or is one model with decode, and needs no table")
            return
        mean = self._with_mean(context, tokens)
        known = sum(counts[token] for token in tokens)
        context.note(
            f"recovery '{self.name}': prefill knows {len(tokens)} first tokens, with which {known} of the {len(context.texts)} "
            f"training texts begin; others have {'the mean of their states' if mean else 'what prefill makes of them'}"
        )

    def _with_mean(self, context: RecoveryContext, tokens: Sequence[int]) -> bool:
        """Decide what tokens that are not in the table are given, and tell whether it is the mean."""
        if self.others != "auto":
            return self.others == "mean"
        # Only other texts begin with other tokens; one choice of two is no more than a training that stops where they say.
        without = context.divergence()
        context.keep_first_tokens(tokens, others=True)
        mean = context.divergence() < without
        context.keep_first_tokens(tokens, others=mean)
        return mean
