"""An operation that a compiler cannot remove, behind which others were computed.

Shape suffixes: N token, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("pdtrim::after", mutates_args=())
def after(hidden_ND: Tensor, done: Tensor) -> Tensor:
    """Return the hidden states unchanged, but only after `done` was computed.

    A compiler removes unused results, and nothing in prefill reads these K/V: so the hidden states are made to depend on them.
    """
    del done
    return hidden_ND.clone()


@after.register_fake
def _(hidden_ND: Tensor, done: Tensor) -> Tensor:
    del done
    return torch.empty_like(hidden_ND)
