"""How much of decode's attention falls on the tokens of a prompt that it would read under a selection.

Shape suffixes: H heads, Q tokens that look, K tokens that are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.attention_weights import gives_no_weights
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.plan.selections import Selection


def watchable(items: Sequence[Item], first_token: FirstToken) -> list[tuple[Item, int]]:
    """Return the items in which decode reads something that prefill handed over, with how many tokens of the prompt that are."""
    again = 1 if first_token == "decode" else 0
    found = ((item, len(item.prompt_of(item.answer)) - again) for item in items)
    return [(item, tokens) for item, tokens in found if tokens > 0 and again + len(item.choices[item.answer]) > 1]


def masses(pair: TwoPhaseModel, items: Sequence[Item], selections: Sequence[Selection]) -> list[Tensor]:
    """Return for each selection the attention that falls on what it reads, `[items, heads]`, the mean over decode's tokens.

    Raises `PdtrimError` for a block that decode does not run, and for a model whose attention gives no weights.
    """
    strange = [selection for selection in selections if selection.block not in pair.decode_blocks]
    if strange:
        raise PdtrimError(f"decode runs no block {strange[0].block}: it has {', '.join(map(str, pair.decode_blocks))}")
    found: list[list[Tensor]] = [[] for _ in selections]
    for item, tokens in watchable(items, pair.first_token):
        one: dict[int, Tensor] = {}
        prompt, choice = item.prompt_of(item.answer), item.choices[item.answer]
        rows = len(prompt) + len(choice) - 1 - tokens

        def seen(block: int, weights_HQK: Tensor, tokens: int = tokens, rows: int = rows, one: dict[int, Tensor] = one) -> None:
            mass_HK = weights_HQK.float().sum(dim=1) / rows
            for number, selection in enumerate(selections):
                if selection.block == block:
                    head, tail = selection.read(tokens)
                    mass_H = (mass_HK[:, :head].sum(dim=1) + mass_HK[:, tokens - tail : tokens].sum(dim=1)).cpu()
                    one[number] = one[number] + mass_H if number in one else mass_H

        pair.watch(prompt, choice, seen)
        for number, of_selection in enumerate(found):
            if number not in one:
                raise gives_no_weights(pair.model)
            of_selection.append(one[number])
    return [torch.stack(of_selection) if of_selection else torch.zeros(0, 0) for of_selection in found]
