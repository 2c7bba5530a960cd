"""Texts that a model writes: sampled at temperature 1, many at once.

Shape suffixes: B batch, T token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pdtrim_core.execution.distributions import drawn
from pdtrim_core.execution.two_phase import stop_tokens
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.logits_head import given_in_one_piece
from pdtrim_core.model.packed_weights import packed


def sampled(
    model: BlockModel,
    openings: Sequence[Sequence[int]],
    length: int,
    *,
    seed: int,
    written: Callable[[float], None] = lambda share: None,
) -> list[tuple[int, ...]]:
    """Return texts of so many tokens, each with an opening of its own, all of them shorter than the texts.

    The tokens are drawn from the model's own distribution, without those that would end the text, and without those that the
    head has and the embedding has not. `written` is told the share of the tokens that is there, after each one of all texts.
    Raises `PdtrimError` for an opening that the model cannot read.
    """
    from transformers import DynamicCache  # noqa: PLC0415 - slow to import, and only generation wants it

    generator = torch.Generator(device=model.device).manual_seed(seed)
    for opening in openings:
        model.check_ids(opening, "the opening of a text that is to be written")
    rows = min(model.vocabulary, model.config.vocab_size)
    stops = torch.tensor(sorted(token for token in stop_tokens(model) if token < rows), dtype=torch.long, device=model.device)
    # Until the longest opening ends, texts with a shorter one are written while the others are still read.
    shortest, longest = min(map(len, openings)), max(map(len, openings))
    given_BT = torch.full((len(openings), length), -1, device=model.device)
    given_BT[:, :longest] = torch.tensor([[*opening, *[-1] * (longest - len(opening))] for opening in openings])
    text_BT = given_BT[:, :shortest]
    read_BT, cache = text_BT, DynamicCache()
    with torch.inference_mode(), given_in_one_piece(model.head), packed(model, products=length - shortest):
        while text_BT.shape[1] < length:
            logits_BV: Tensor = model.model(input_ids=read_BT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[
                :, -1, :rows
            ]
            drawn_BT = drawn(logits_BV.float().index_fill(1, stops, -torch.inf), generator)
            given = given_BT[:, text_BT.shape[1], None]
            read_BT = torch.where(given < 0, drawn_BT, given)
            text_BT = torch.cat([text_BT, read_BT], dim=1)
            written((text_BT.shape[1] - shortest) / (length - shortest))
    return [tuple(text) for text in text_BT.tolist()]
