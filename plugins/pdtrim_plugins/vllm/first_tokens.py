"""The tables of a prefill checkpoint: what is known of the tokens that prompts begin with, looked up for each token of a step.

Shape suffixes: N token, K tokens of a table, X numbers of a token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.logger import init_logger

STATES, KEYS, VALUES = "first_states", "first_keys", "first_values"
"""The tables of a block: hidden states in front of it, or K and V of all heads in front of the rotary embedding."""
OTHERS = -1
"""Stands for all tokens that a table does not have."""
SECONDS_BETWEEN = 60.0
"""Between two lines in the log."""

# The engine shows what is logged under its own name.
logger = init_logger("vllm.pdtrim")


class FirstTokens(nn.Module):
    """Knows which tokens of a step begin a prompt, and the row of the tables in which they stand: one of `OTHERS` has all others.

    `rows_N` has one entry for each token that a step can have, -1 where nothing is known; it is the same memory in every step, so
    that a compiled model and a captured graph read what the step has written.
    """

    rows_N: Tensor

    def __init__(self, tokens: Sequence[int], most_tokens: int) -> None:
        super().__init__()
        self.register_buffer("tokens_K", torch.tensor(tokens, dtype=torch.long), persistent=False)
        self.register_buffer("rows_N", torch.full((most_tokens,), -1, dtype=torch.long), persistent=False)
        # The tokens ascend.
        self.row_of_others = 0 if tokens[0] == OTHERS else -1
        self.register_buffer("begun", torch.zeros(2, dtype=torch.long), persistent=False)
        self._told_at = time.monotonic()

    def look_up(self, ids_N: Tensor | None, positions_N: Tensor) -> None:
        """Note the rows of the tokens that are about to run."""
        if ids_N is None:
            self.rows_N.fill_(-1)
            return
        tokens_K: Any = self.tokens_K
        ids_N = ids_N.long()
        rows_N = torch.searchsorted(tokens_K, ids_N).clamp(max=len(tokens_K) - 1)
        first_N = positions_N == 0
        known_N = first_N & (tokens_K[rows_N] == ids_N)
        rows_N = torch.where(known_N, rows_N, self.row_of_others)
        self.rows_N[: len(ids_N)] = torch.where(first_N, rows_N, -1)
        self._count(first_N, known_N)

    def _count(self, first_N: Tensor, known_N: Tensor) -> None:
        """Count the prompts that begin, and those whose first token is known; say so now and then."""
        real = _real_tokens()
        if real is None:
            return
        begun: Any = self.begun
        begun += torch.stack([first_N[:real].sum(), known_N[:real].sum()])
        if time.monotonic() - self._told_at >= SECONDS_BETWEEN:
            self._told_at = time.monotonic()
            total, known = begun.tolist()
            logger.info(
                "pdtrim: %d of %d prompts began with a token that is not in the table of first tokens, whose K/V are not exact",
                total - known,
                total,
            )


def put(rows_N: Tensor, made_NX: Tensor, table_KX: Tensor) -> Tensor:
    """Return what was made of tokens, with the rows of a table for those that have one."""
    rows_N = rows_N[: len(made_NX)]
    return torch.where((rows_N >= 0)[:, None], table_KX[rows_N.clamp(min=0)], made_NX)


def table(count: int, width: int, *, heads: int = 0) -> nn.Parameter:
    """Return a table that is loaded from a checkpoint; with `heads`, the number of K/V heads in all, only this device's part."""
    made = nn.Parameter(torch.empty(count, width), requires_grad=False)

    def load(parameter: nn.Parameter, loaded_KX: Tensor) -> None:
        if heads:
            # With more devices than heads several have the same one.
            first = get_tensor_model_parallel_rank() * heads // get_tensor_model_parallel_world_size()
            size = loaded_KX.shape[1] // heads
            loaded_KX = loaded_KX[:, first * size : first * size + width]
        assert parameter.shape == loaded_KX.shape
        parameter.data.copy_(loaded_KX)

    made.weight_loader = load  # type: ignore[attr-defined]  # where the engine looks for it
    return made


def _real_tokens() -> int | None:
    """Return how many tokens of a step are no padding; None where the engine only tries the model out."""
    metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
    if not isinstance(metadata, dict) or not metadata:
        return None
    found: int | None = getattr(next(iter(metadata.values())), "num_actual_tokens", None)
    return found
