"""Blocks of other shapes in a GGUF file: llama.cpp's architecture deci has a number of heads and of channels for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pdtrim_core.api import ExportFacts, PdtrimError
from pdtrim_plugins.exporters.configs import family_of, formed, ordinary
from pdtrim_plugins.exporters.stages import StoredBlock

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import BlockModel

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""What GGUF calls the families whose files were read back with the same logits, but for rounding."""
LLAMA, DECI = "llama", "deci"
"""Both have biases at every projection, which a block may have or not; deci also has other widths in each block, and no Q/K/V."""
UNLIKE = {"qwen3": "normalises Q and K"}
"""What families do that llama and deci do not. The others compute as these do, once the rows of Q and K are interleaved."""
WHOLE_HEADS = ("qwen2",)
"""Families whose own architecture takes Q for as wide as hidden states; with other heads they are said by llama."""
COUNTED = {"feed_forward_length": "ffn_gate", "head_count": "attn_q", "head_count_kv": "attn_k"}
"""The projection whose rows are the channels, heads or K/V heads of a block."""
NO_CHANNELS = 32
"""Width of the MLP of zeros in a block without MLP: with none, deci skips its attention, too. One block of Q8_0."""


def block_problems(facts: ExportFacts) -> Iterator[str]:
    """Yield why no architecture has words for the blocks that are certain, or for parts that may be dropped."""
    family = family_of(facts.config)
    if family in UNLIKE:
        if not facts.uniform:
            yield _unsaid(family, "those that the pruner gives have not")
        if facts.drops_parts:
            yield _unsaid(family, "decode may run blocks without their attention or their MLP")


def architecture_of(model: BlockModel, stored: Sequence[StoredBlock]) -> tuple[str, Any]:
    """Return the architecture that has words for the blocks, and a config for all that is no block's own.

    Raises `PdtrimError` with the reason where none has.
    """
    family = family_of(model.model.config)
    try:
        config = ordinary(model, stored)
        return LLAMA if family in WHOLE_HEADS and not _whole_heads(config) else ARCHITECTURES[family], config
    except PdtrimError as error:
        if not any(block.widths or block.lost for block in stored):
            raise
        if family in UNLIKE:
            raise PdtrimError(_unsaid(family, f"those of this decode model have not ({error})")) from error
    shapes = [{part: width for part, width in block.widths.items() if part != "bias"} for block in stored]
    same = all(shape == shapes[0] for shape in shapes) and not any(block.lost for block in stored)
    return LLAMA if same else DECI, formed(model, stored, {"format": 1})


def with_words_for(lacking: Mapping[str, Tensor], block: int, hidden: int, head_dim: int) -> dict[str, Tensor]:
    """Return the tensors of a block by GGUF's names, those changed that tell deci which part the block runs without.

    `hidden` and `head_dim` are the sizes of hidden states and of a head. Without attention there is no norm for it; the first
    block, where the size of heads is looked for, has one head of zeros. Without MLP there are a few channels of zeros.
    """
    found, at = dict(lacking), f"blk.{block}."
    like = next(iter(lacking.values()))
    if f"{at}ffn_gate.weight" not in found:
        found |= _zeros(like, at, {"ffn_gate": (NO_CHANNELS, hidden), "ffn_up": (NO_CHANNELS, hidden)})
        found |= _zeros(like, at, {"ffn_down": (hidden, NO_CHANNELS)})
    if f"{at}attn_q.weight" not in found and block == 0:
        found |= _zeros(like, at, dict.fromkeys(("attn_q", "attn_k", "attn_v"), (head_dim, hidden)))
        found |= _zeros(like, at, {"attn_output": (hidden, head_dim)})
    elif f"{at}attn_q.weight" not in found:
        del found[f"{at}attn_norm.weight"]
    return found


def counts_of(shapes: Mapping[str, tuple[int, ...]], blocks: int, head_dim: int) -> dict[str, int | list[int]]:
    """Return how many channels, heads and K/V heads blocks have, by the shapes of all tensors: a number each, or one for all."""
    found: dict[str, int | list[int]] = {}
    for key, projection in COUNTED.items():
        rows = [shapes.get(f"blk.{block}.{projection}.weight", (0,))[0] for block in range(blocks)]
        counts = [count if projection == "ffn_gate" else count // head_dim for count in rows]
        found[key] = counts if len(set(counts)) > 1 else counts[0]
    return found


def _zeros(like: Tensor, at: str, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    return {f"{at}{name}.weight": like.new_zeros(shape) for name, shape in shapes.items()}


def _whole_heads(config: Any) -> bool:
    from pdtrim_core.api import head_dim_of  # noqa: PLC0415 - listings must not import torch

    return bool(config.num_attention_heads * head_dim_of(config) == config.hidden_size)


def _unsaid(family: str, others: str) -> str:
    return (
        f"in a GGUF file of {family} all blocks have one shape, both parts and the family's own biases, and {others}: llama.cpp "
        f"has other blocks in its {DECI} alone, and {family} {UNLIKE[family]}, which {DECI} does not: let the pruner narrow all "
        'blocks alike (such as width = "uniform") without new biases, or drop whole blocks'
    )
