"""The first token of a prompt as the dense model has it, whatever prefill has lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import Recovery

if TYPE_CHECKING:
    from pdtrim_core.api import RecoveryContext


class ExactFirstToken(Recovery):
    """Gives prefill a table of the dense model's hidden states of first tokens, at no cost when the pair runs.

    All tokens attend to the first one of their prompt most of all, and its hidden states are thousands of times longer than
    those of others. They depend on that token alone: where prefill has lost something, they are known beforehand for each
    token that a prompt may begin with. The table has those that the tokenizer and its chat template put in front of a text,
    then the most frequent ones of the recipe's items, then those of the training texts. A prompt that begins with another token
    is read as without the table.
    """

    name = "exact-first-token"

    tokens_at_most: int = Field(256, gt=0, description="first tokens that the table has at most")

    def recover(self, context: RecoveryContext) -> None:
        """Keep the table, and say how many of the training texts begin with a token in it."""
        counts = Counter(text.prompt_of(0)[0] for text in context.texts)
        frequent = (token for token, _ in counts.most_common())
        tokens = list(dict.fromkeys((*context.openings, *frequent)))[: self.tokens_at_most]
        if context.keep_first_tokens(tokens):
            known = sum(counts[token] for token in tokens)
            context.note(
                f"recovery '{self.name}': prefill knows {len(tokens)} first tokens, with which {known} of the "
                f"{len(context.texts)} training texts begin"
            )
        else:
            context.note(f"recovery '{self.name}': prefill loses nothing, or is one model with decode, and needs no table")
