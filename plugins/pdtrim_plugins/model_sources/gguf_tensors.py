"""Whether the tensors of a GGUF file are those of its config: transformers' reader passes over any that it does not know."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from pdtrim_plugins.model_sources.gguf_table import table_of
from pdtrim_plugins.model_sources.opening import opening
from pdtrim_plugins.model_sources.tensors import COMPUTED, note_unread, refuse_tensors, without_weights

BLOCK = "blk."
"""What the names of the tensors of a block begin with."""


def check_table(file: Path, config: Any, name: str) -> None:
    """Raise `PdtrimError` that names tensors which are missing, have another shape, or belong to no block of the config."""
    model = without_weights(config, name)
    with opening(name):
        table = table_of(file)
        names = _names(model, table.architecture)
    stored = table.shapes
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    read = {ours for theirs, ours in names.items() if theirs in stored}
    unknown = [theirs for theirs in stored if theirs not in names and not COMPUTED.search(theirs)]
    refuse_tensors(
        name,
        missing=[theirs for theirs, ours in names.items() if theirs not in stored and ours not in read | tied],
        # Some families' matrices are stored the other way round, and experts one behind the other.
        mismatched=[
            (theirs, stored[theirs], expected[ours])
            for theirs, ours in names.items()
            if theirs in stored and ours in expected and prod(stored[theirs]) != prod(expected[ours]) and _whole(ours, names)
        ],
        unexpected=[theirs for theirs in unknown if theirs.startswith(BLOCK)],
    )
    note_unread(name, [theirs for theirs in unknown if not theirs.startswith(BLOCK)])


def _names(model: Any, architecture: str) -> dict[str, str]:
    """Return transformers' name of each tensor by its name in GGUF files."""
    from transformers.modeling_gguf_pytorch_utils import (  # noqa: PLC0415 - slow to import
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    found: dict[str, str] = get_gguf_hf_weights_map(model, processor)
    return found


def _whole(ours: str, names: dict[str, str]) -> bool:
    """Tell whether one tensor of the file is all of one of the model."""
    return list(names.values()).count(ours) == 1
