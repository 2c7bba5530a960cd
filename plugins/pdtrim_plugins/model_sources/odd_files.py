"""Whether the files of a checkpoint want a closer look: read within milliseconds, since nothing heavy is imported."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pdtrim_plugins.architectures import LAYOUTS
from pdtrim_plugins.model_sources.block_counts import blocks_in_config

BLOCK = re.compile(r"(.*)\.(\d+)\.")
"""The name of a tensor of a block: the list of blocks, and its number."""
SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size")
"""Keys of a config that no model has below one. transformers divides by some of them, and says no more than that."""
REFUSED = ("is_encoder_decoder", "quantization_config", "num_kv_shared_layers")
"""Keys of a config that a model which can be pruned by blocks has empty."""
ROPES = ("rope_parameters", "rope_scaling")
CHANGING = {"longrope", "dynamic"}
"""Rotary embeddings that change with the length of a text."""
OWN = "pdtrim_"
"""What the types of our own exports begin with."""
LARGEST = 2**26
"""Bytes of names that are read at most."""


def are_odd(folder: Path) -> bool:
    """Tell whether a checkpoint has fewer blocks than its config says, a size below one, or heads that do not divide.

    So is a config of a family that no layout of ours names, and one that says what keeps models from being pruned. What is odd is
    no error here: whoever opens the model says what is wrong, or finds that it is right.
    """
    config = _json(folder / "config.json")
    if any(too_small(config)) or _heads_are_odd(_of_text(config)) or _may_be_refused(config):
        return True
    count, stored = blocks_in_config(folder / "config.json"), _blocks_in(_names(folder))
    return count is not None and stored is not None and stored < count


def too_small(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the sizes of a config that are below one, each with its key."""
    for of_model in (config, _of_text(config)):
        for key in SIZES:
            size = of_model.get(key)
            if isinstance(size, int) and size < 1:
                yield key, size


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the text model, which is that of the whole one where it has no other part."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _may_be_refused(config: Mapping[str, Any]) -> bool:
    kind = config.get("model_type")
    if isinstance(kind, str) and kind not in LAYOUTS and not kind.startswith(OWN):
        return True
    of_models = (config, _of_text(config))
    ropes = [rope for of_model in of_models for key in ROPES if isinstance(rope := of_model.get(key), Mapping)]
    kinds = {rope.get(key) for rope in (*ropes, *_tables_in(ropes)) for key in ("rope_type", "type")}
    return any(of_model.get(key) for of_model in of_models for key in REFUSED) or bool(kinds & CHANGING)


def _tables_in(tables: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for table in tables:
        yield from (value for value in table.values() if isinstance(value, Mapping))


def _heads_are_odd(config: Mapping[str, Any]) -> bool:
    heads, of_kv, width = (config.get(key) for key in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if not isinstance(heads, int):
        return False
    if isinstance(of_kv, int) and heads % of_kv:
        return True
    return config.get("head_dim") is None and isinstance(width, int) and bool(width % heads)


def _blocks_in(names: Iterable[str]) -> int | None:
    """Return how many blocks the longest list of them has; None where no tensor is of one."""
    found: dict[str, set[int]] = {}
    for name in names:
        if match := BLOCK.match(name):
            found.setdefault(match[1], set()).add(int(match[2]))
    return max(map(len, found.values()), default=None)


def _names(folder: Path) -> Iterable[str]:
    """Return the names of the stored tensors, as an index or the header of the one file tells them."""
    index = _json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(index, Mapping):
        return index
    try:
        with (folder / "model.safetensors").open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(length, LARGEST)))
    except (OSError, ValueError, RecursionError, struct.error):
        return ()
    return header if isinstance(header, Mapping) else ()


def _json(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}
