"""Generating with a pair as with a transformers model: from text or tokens, one prompt or several, with its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pdtrim_core.data.tokens import opening_of, tokens_of
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.two_phase import TwoPhaseModel, stop_tokens
from pdtrim_core.wording import shortened

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor
"""A text, tokens, several of either, or tokens as transformers takes them, `[batch, token]`."""
ONE_EACH = ("num_beams", "num_return_sequences")
"""Options of transformers that make several continuations of a prompt, for which K/V that were handed over would be copied."""
LENGTHS = ("max_length", "min_length")
"""Options that count the prompt, too."""


def generate(
    pair: TwoPhaseModel, prompt: Prompt, max_new_tokens: int, *, mask: Tensor | None = None, options: Mapping[str, Any]
) -> Any:
    """Return what follows a prompt, or each of several, in the form in which prompts were given.

    A text gives a text and tokens give tokens, each up to the end of its text; a tensor of tokens `[batch, token]` gives one with
    the prompts in front, as transformers does, `mask` being 0 where these are padded. `options` are those of transformers'
    `generate`; without any, the likeliest token is taken each time. Raises `PdtrimError` for what is no prompt, for text without
    a tokenizer, and for options that a pair cannot follow.
    """
    _check(max_new_tokens, options)
    if isinstance(prompt, Tensor):
        return _tensor(pair, prompt, max_new_tokens, mask, options)
    if mask is not None:
        raise PdtrimError("attention_mask goes with a tensor of tokens: other prompts have no padding")
    if isinstance(prompt, str):
        return _decoded(pair, _listed(pair, [_encoded(pair, prompt)], max_new_tokens, options))[0]
    kinds = {type(one) for one in prompt} if isinstance(prompt, Sequence) and prompt else set()
    if kinds == {str}:
        texts = cast("Sequence[str]", prompt)
        return _decoded(pair, _listed(pair, [_encoded(pair, text) for text in texts], max_new_tokens, options))
    if kinds and all(issubclass(kind, int) and kind is not bool for kind in kinds):
        return _listed(pair, [list(cast("Sequence[int]", prompt))], max_new_tokens, options)[0]
    if kinds and all(issubclass(kind, Sequence) for kind in kinds) and str not in kinds:
        rows = [list(one) for one in cast("Sequence[Sequence[int]]", prompt)]
        return _listed(pair, rows, max_new_tokens, options)
    if not kinds and isinstance(prompt, Sequence):
        raise PdtrimError("there is no prompt: the list is empty")
    what = type(prompt).__name__ if not kinds else f"{type(prompt).__name__} of {', '.join(sorted(k.__name__ for k in kinds))}"
    raise PdtrimError(f"a prompt is a text, a list of tokens, a list of either, or a tensor [batch, token], not {what}")


def _check(max_new_tokens: int, options: Mapping[str, Any]) -> None:
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise PdtrimError(f"max_new_tokens is a number of tokens from 1 on, not {shortened(repr(max_new_tokens))}")
    lengths = [name for name in LENGTHS if name in options]
    if lengths:
        raise PdtrimError(f"{lengths[0]} counts the prompt, too: say max_new_tokens, or min_new_tokens")
    several = [name for name in ONE_EACH if options.get(name, 1) != 1]
    if several:
        raise PdtrimError(f"{several[0]}: a pair makes one continuation of a prompt: give the prompt as often as you want one")


def _listed(pair: TwoPhaseModel, prompts: Sequence[list[int]], count: int, options: Mapping[str, Any]) -> list[list[int]]:
    """Return what follows prompts, each up to the token that ends it."""
    if not all(prompts):
        # An empty text is one, too, where the tokenizer puts nothing in front.
        raise PdtrimError(f"prompt {list(prompts).index([])} has no tokens, so that nothing can follow it")
    if not options:
        return [pair.generate(prompts[0], count)] if len(prompts) == 1 else pair.greedy_batch(prompts, count)
    for prompt in prompts:
        pair.model.check_tokens(prompt, "the prompt with what follows it", more=count - 1)
    width, device = max(map(len, prompts)), pair.model.device
    ids_BT = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    whole_BT = _tensor(pair, ids_BT, count, mask_BT, options)
    stops = stop_tokens(pair.model) | _also_stops(options)
    return [_ended(tokens, stops) for tokens in whole_BT[:, width:].tolist()]


def _tensor(pair: TwoPhaseModel, ids_BT: Tensor, count: int, mask_BT: Tensor | None, options: Mapping[str, Any]) -> Tensor:
    """Return prompts with what follows each."""
    if ids_BT.dim() != 2 or ids_BT.is_floating_point():
        raise PdtrimError(f"a tensor of tokens is [batch, token] of whole numbers, not {list(ids_BT.shape)} of {ids_BT.dtype}")
    if not ids_BT.numel():
        raise PdtrimError(f"a tensor of tokens {list(ids_BT.shape)} has none, so that nothing can follow them")
    mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
    if mask_BT.shape != ids_BT.shape:
        raise PdtrimError(f"attention_mask is {list(mask_BT.shape)}, and the tokens are {list(ids_BT.shape)}")
    if not bool(mask_BT[:, -1].all()):
        raise PdtrimError('prompts are padded on the left: say padding_side = "left" to the tokenizer')
    stops = stop_tokens(pair.model)
    length = {"max_length": ids_BT.shape[1] + count, "pad_token_id": min(stops, default=0)}
    device = pair.model.device
    try:
        return pair.generate_batch(ids_BT.to(device), mask_BT.to(device), **{**length, "do_sample": False, **options})
    except (TypeError, ValueError) as error:
        # What transformers says of options that it does not have, or values that cannot be.
        raise PdtrimError(f"transformers refuses these options of generate: {str(error).splitlines()[0]}") from error


def _ended(tokens: Sequence[int], stops: set[int]) -> list[int]:
    """Return tokens up to the first that ends a text, which counts: what stands behind it is padding."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens) - 1)
    return list(tokens[: end + 1])


def _also_stops(options: Mapping[str, Any]) -> set[int]:
    given = options.get("eos_token_id")
    return set(given) if isinstance(given, list) else set() if given is None else {given}


def _tokenizer(pair: TwoPhaseModel) -> Any:
    if pair.model.tokenizer is None:
        raise PdtrimError("text needs a tokenizer: say apply(..., tokenizer=...), or give tokens")
    return pair.model.tokenizer


def _encoded(pair: TwoPhaseModel, text: str) -> list[int]:
    """Return the tokens of a text, behind those with which the tokenizer begins every text."""
    tokenizer = _tokenizer(pair)
    return [*opening_of(text, tokenizer), *tokens_of(text, tokenizer)]


def _decoded(pair: TwoPhaseModel, found: Sequence[Sequence[int]]) -> list[str]:
    """Return tokens as texts, without the token that ends one."""
    tokenizer, stops = _tokenizer(pair), stop_tokens(pair.model)
    return [tokenizer.decode(list(tokens[:-1] if tokens and tokens[-1] in stops else tokens)) for tokens in found]
