"""Whether the tensors of a GGUF file are those of its config: transformers' reader passes over any that it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pdtrim_core.api import PdtrimError
from pdtrim_plugins.model_sources.gguf_table import Table, table_of
from pdtrim_plugins.model_sources.opening import opening
from pdtrim_plugins.model_sources.tensors import COMPUTED, note_unread, refuse_tensors, without_weights

BLOCK = "blk."
"""What the names of the tensors of a block begin with."""
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the rotary frequencies are divided by; Llama 3.1 and later have the first."""
TOKENIZER = {
    "kind of tokenizer": ("tokenizer.ggml.model",),
    "vocabulary": ("tokenizer.ggml.tokens",),
    "merges": ("tokenizer.ggml.merges", "tokenizer.ggml.scores"),
}
"""The values of a file that its tokenizer is made from, one of each line: merges are found by scores where there are none."""


def check_table(file: Path, config: Any, name: str) -> None:
    """Raise `PdtrimError` that names tensors which are missing, have another shape, or belong to no block of the config.

    Or that names what is missing of its tokenizer.
    """
    model = without_weights(config, name)
    with opening(name):
        table = table_of(file)
        processor = _processor(model, table.architecture)
        names = _names(model, processor)
    _refuse_tokenizer(table, name)
    scaled = _scaled(table)
    if scaled and not _scales(config.get_text_config()):
        raise PdtrimError(
            f"cannot open the model {name}: it scales its rotary embeddings ({', '.join(scaled)}), which transformers does not "
            "read from GGUF files, so every position would be another; take the checkpoint that the file was made from"
        )
    stored = table.shapes
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    unknown = [theirs for theirs in stored if theirs not in names and not COMPUTED.search(theirs)]
    parts = {ours: [theirs for theirs in names if names[theirs] == ours] for ours in names.values() if ours in expected}
    refuse_tensors(
        name,
        missing=[theirs for theirs, ours in names.items() if theirs not in stored and ours not in tied],
        mismatched=[
            (theirs, stored[theirs], shape)
            for ours, several in parts.items()
            for theirs in several
            if theirs in stored
            and (shape := _part_of(expected[ours], len(several))) != _read_shape(processor, theirs, stored[theirs])
        ],
        unexpected=[theirs for theirs in unknown if theirs.startswith(BLOCK)],
    )
    note_unread(name, [theirs for theirs in unknown if not theirs.startswith(BLOCK)])


def _refuse_tokenizer(table: Table, name: str) -> None:
    """Raise `PdtrimError` where a file lacks what its tokenizer is made from."""
    lacking = {what: keys for what, keys in TOKENIZER.items() if table.keys.isdisjoint(keys)}
    if lacking:
        told = ", no ".join(f"{what} ({' or '.join(keys)})" for what, keys in lacking.items())
        raise PdtrimError(
            f"cannot open the model {name}: it has no {told}, without which there is no tokenizer; take the checkpoint that the "
            "file was made from, or convert that again"
        )


def _scaled(table: Table) -> list[str]:
    """Return the tensors and values of a file that scale rotary embeddings."""
    of_type = {key: value for key, value in table.scaling.items() if key.endswith(".type")}
    factors = {key: value for key, value in table.scaling.items() if key.endswith((".factor", ".scale_linear"))}
    kinds = [key for key, value in of_type.items() if value != "none"]
    # A kind that is told is the last word on a factor.
    stretched = [] if of_type else [key for key, value in factors.items() if value not in (0, 1)]
    return [*(name for name in FACTORS if name in table.shapes), *kinds, *stretched]


def _scales(config: Any) -> bool:
    """Tell whether the config that was read scales rotary embeddings."""
    rope = getattr(config, "rope_parameters", None) or {}
    every = (rope, *(value for value in rope.values() if isinstance(value, dict)))
    return any(parameters.get("rope_type", "default") != "default" for parameters in every)


def _processor(model: Any, architecture: str) -> Any:
    """Return what changes the tensors of a family after they were read."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor  # noqa: PLC0415 - slow to import

    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())


def _names(model: Any, processor: Any) -> dict[str, str]:
    """Return transformers' name of each tensor by its name in GGUF files."""
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map  # noqa: PLC0415 - slow to import

    found: dict[str, str] = get_gguf_hf_weights_map(model, processor)
    # The model's experts are no modules of their own, so their names end without what the file's end with.
    return {f"{theirs}.weight" if theirs.endswith("_exps") else theirs: ours for theirs, ours in found.items()}


def _part_of(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Return the shape of one of so many equal tensors that are joined to one: experts' two, along the second dimension."""
    return shape if parts == 1 else (shape[0], shape[1] // parts, *shape[2:])


def _read_shape(processor: Any, theirs: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that a stored tensor has once it was read: some families' are turned round; None where that fails."""
    # One number stands for all, so that it takes no memory where nothing is reordered. It is negative for logarithms of -x.
    numbers = np.broadcast_to(np.int8(-1), shape)
    try:
        read = processor.process(weights=numbers, name=theirs, parsed_parameters={"tensors": {}})
    except (ValueError, ZeroDivisionError):
        return None
    return tuple(read.weights.shape)
