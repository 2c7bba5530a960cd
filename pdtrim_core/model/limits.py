"""What a model can be given: ids of its vocabulary, and as many tokens as it has learned positions for.

Beyond either its embeddings fail, with an error that names neither the tokens nor where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pdtrim_core.errors import PdtrimError

SPARE_ROWS = 8
"""Rows that a table of positions may have more than the config says; OPT's has two in front."""


def learned_positions(model: Any, blocks: str, most: int | None) -> int | None:
    """Return how many positions a model has learned; None for one that computes them, such as rotary ones.

    `blocks` is the path of its list of blocks, `most` what its config says. A table of positions is an embedding beside the
    blocks of about that many rows.
    """
    if most is None:
        return None
    beside = model.get_submodule(blocks.rpartition(".")[0]).children()
    tables = [module for module in beside if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings()]
    return most if any(0 <= table.num_embeddings - most <= SPARE_ROWS for table in tables) else None


def check_ids(tokens: Sequence[int], rows: int, *, what: str, name: str) -> None:
    """Raise `PdtrimError` for a token that has no row in the embedding. `what` names the tokens, `name` the model."""
    if tokens and not 0 <= min(tokens) <= max(tokens) < rows:
        wrong = next(token for token in tokens if not 0 <= token < rows)
        raise PdtrimError(
            f"{what} has the token {wrong}, and the vocabulary of {name} ends at {rows - 1}: its tokenizer and its weights do "
            "not belong together"
        )


def check_length(length: int, positions: int | None, *, what: str, name: str) -> None:
    """Raise `PdtrimError` for more tokens than there are learned positions."""
    if positions is not None and length > positions:
        raise PdtrimError(f"{what} needs {length} positions, and {name} has learned {positions}: take shorter texts")
