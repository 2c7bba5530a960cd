"""Hashes of a model's weights, made once for files that stay as they are, and remembered in the cache folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.atomic_files import cache_folder, write_whole, writing
from pdtrim_core.files.reading import UnreadableError, read_text
from pdtrim_core.model.several_devices import weights_of

FOLDER = "fingerprints"
"""The part of the cache that they are in."""
WORTH_KEEPING = 2**26
"""Bytes of files from which on a hash is remembered: that of less is made in no time."""
HASH_LENGTH = 64
IGNORED = ("dtype", "torch_dtype", "transformers_version", "architectures")
"""What a config says that decides no number."""


def fingerprint_of(model: Any, files: Sequence[Path] = (), behind: Callable[[], None] = lambda: None) -> str:
    """Return a SHA-256 of names, shapes and weights; the same whatever number format the weights are loaded in.

    `files` are those that the weights come from, and no others may. `behind` is called behind each weight that is read.
    """

    def make() -> str:
        digest = hashlib.sha256()
        for name, weights in weights_of(model, behind=behind):
            digest.update(f"{name} {tuple(weights.shape)}\n".encode())
            rounded = weights.to(torch.bfloat16).contiguous().cpu().view(torch.uint8)
            digest.update(rounded.flatten().numpy().data)
        return digest.hexdigest()

    return _remembered(model, files, "weights", make)


def exact_fingerprint_of(model: Any, files: Sequence[Path] = (), behind: Callable[[], None] = lambda: None) -> str:
    """Return a SHA-256 of all that decides a model's numbers: its config, and its weights and buffers to the bit."""

    def make() -> str:
        digest = hashlib.sha256(_config_of(model).encode())
        for name, tensor in weights_of(model, buffers=True, behind=behind):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    return _remembered(model, files, "exact", make)


def _config_of(model: Any) -> str:
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_") and k not in IGNORED}
    return json.dumps(config, sort_keys=True, default=str)


def _remembered(model: Any, files: Sequence[Path], what: str, make: Callable[[], str]) -> str:
    """Return what is remembered of files as they are now, or else what is made now."""
    try:
        stats = [(str(file.resolve()), file.stat()) for file in files]
    except OSError:
        return make()
    if sum(stat.st_size for _, stat in stats) < WORTH_KEEPING:
        return make()
    known = [what, _config_of(model), *(importlib.metadata.version(name) for name in ("torch", "transformers"))]
    known += [f"{name} {tuple(weight.shape)} {weight.dtype}" for name, weight in model.named_parameters()]
    known += [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]
    path = cache_folder() / FOLDER / hashlib.sha256("\n".join(known).encode()).hexdigest()
    with suppress(OSError, UnreadableError):
        found = read_text(path).strip()
        if len(found) == HASH_LENGTH:
            return found
    made = make()
    with suppress(PdtrimError), writing(path.parent):  # a cache that cannot be written costs time only
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, made + "\n")
    return made
