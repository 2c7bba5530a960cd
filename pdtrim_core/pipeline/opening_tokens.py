"""The tokens that prompts begin with, the surest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pdtrim_core.data.items import Item
from pdtrim_core.data.tokens import PLAIN, opening_of, tokens_of


def opening_tokens(tokenizer: Any, items: Sequence[Item], vocabulary: int) -> tuple[int, ...]:
    """Return the first tokens of what a tokenizer and its chat template put in front of a text, then those of items.

    Ids from `vocabulary` on are left out: a template may begin with a token that was added to the tokenizer and not to the
    model, which can then be given no such prompt.

    Those of items come by how often they occur, the most frequent first; an item counts once for each prompt that it has.
    """
    counts = Counter(prompt[0] for item in items for prompt in item.prompts if prompt)
    found = dict.fromkeys((*_always(tokenizer), *(token for token, _ in counts.most_common())))
    return tuple(token for token in found if token < vocabulary)


def _always(tokenizer: Any) -> Iterator[int]:
    yield from opening_of(PLAIN, tokenizer)[:1]
    if getattr(tokenizer, "chat_template", None):
        # A template may refuse what is no conversation of its own sort, each with an error of its own.
        try:
            text = tokenizer.apply_chat_template([{"role": "user", "content": PLAIN}], tokenize=False)
        except Exception:  # noqa: BLE001 - then nothing is known of it
            return
        yield from tokens_of(text, tokenizer)[:1]
