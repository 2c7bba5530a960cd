"""Weights as safetensors files, a shard at a time.

safetensors' own file writing wants all tensors of a file in their final form at once, and its error for a full disk is no
OSError. The form of a file is simple: the length of a header, the header in JSON, the tensors one behind the other.

Readers map the file into memory and compute on it there, and matrix products may round differently where their operands do not
begin at a multiple of `ALIGNMENT`, as they do in memory that torch allocates. So the header is filled up with spaces, which the
format allows, until the first tensor begins at one. No holes are allowed between tensors, so they stand in the order of the
largest power of two that divides their size: all those of whole `ALIGNMENT`s come first and are aligned, and any other begins at
a multiple of that power.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdtrim_core.api import PdtrimError

if TYPE_CHECKING:
    from torch import Tensor, dtype

    Formats = Callable[[str], dtype | None]

NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
}
"""What safetensors calls the number formats of torch."""
ALIGNMENT = 64
"""Bytes: a line of the cache, a register of the widest kind, and what torch aligns its own memory to."""
LENGTH = struct.Struct("<Q")
SINGLE, SHARD, INDEX = "model.safetensors", "model-{:05d}-of-{:05d}.safetensors", "model.safetensors.index.json"


class ShardWriter:
    """Takes tensors one by one and writes a file whenever they reach `shard_bytes`.

    Weights in floating point are stored in the format that `formats` gives their names, and as they are where that is None or
    there are none. `behind` is called behind each tensor that is written.
    """

    def __init__(
        self, folder: Path, shard_bytes: int, formats: Formats | None = None, behind: Callable[[], None] = lambda: None
    ) -> None:
        self._folder = folder
        self._behind = behind
        self._shard_bytes = shard_bytes
        self._formats = formats
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0
        self._shards: list[list[str]] = []
        self.total_bytes = 0
        self.parameters = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Add some tensors, by their names in the checkpoint."""
        for name, tensor in tensors.items():
            size = _stored_bytes(name, tensor, self._formats)
            if self._waiting and self._bytes + size > self._shard_bytes:
                self._flush()
            self._waiting[name] = tensor
            self._bytes += size
            self.total_bytes += size
            self.parameters += tensor.numel()

    def finish(self) -> None:
        """Write the remaining tensors; give the files their final names, and add an index if there are several."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(0).replace(self._folder / SINGLE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = SHARD.format(number + 1, count)
            self._part(number).replace(self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_parameters": self.parameters, "total_size": self.total_bytes}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        write_tensors(self._part(len(self._shards)), self._waiting, self._formats, self._behind)
        self._shards.append(list(self._waiting))
        self._waiting, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], formats: Formats | None = None, behind: Callable[[], None] = lambda: None
) -> None:
    """Write one safetensors file, its tensors aligned as far as the format allows; no more than one is copied at a time.

    `behind` is called behind each tensor.
    """
    import torch  # noqa: PLC0415 - listings must not import torch

    ordered = dict(sorted(tensors.items(), key=lambda named: -_alignment(_stored_bytes(named[0], named[1], formats))))
    with path.open("wb") as file:
        file.write(_head(ordered, formats))
        for name, tensor in ordered.items():
            numbers = tensor.detach().to(device="cpu", dtype=_stored_as(name, tensor, formats)).contiguous()
            if numbers.dtype == torch.float16 and not torch.isfinite(numbers).all():
                raise PdtrimError(f"the tensor {name} has numbers that float16 cannot hold: export with --dtype bfloat16")
            file.write(numbers.reshape(-1).view(torch.uint8).numpy().data)
            behind()


def _head(tensors: Mapping[str, Tensor], formats: Formats | None) -> bytes:
    """Return what stands before the tensors: a length, and the header, which ends at a multiple of `ALIGNMENT`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + _stored_bytes(name, tensor, formats)
        kind = NAMES[str(_stored_as(name, tensor, formats)).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(LENGTH.size + len(text)) % ALIGNMENT)
    return LENGTH.pack(len(text)) + text


def _alignment(size: int) -> int:
    """Return the largest power of two, `ALIGNMENT` at most, that divides a number of bytes."""
    return math.gcd(size, ALIGNMENT)


def _stored_bytes(name: str, tensor: Tensor, formats: Formats | None) -> int:
    return tensor.numel() * _stored_as(name, tensor, formats).itemsize


def _stored_as(name: str, tensor: Tensor, formats: Formats | None) -> dtype:
    found = formats(name) if formats is not None and tensor.is_floating_point() else None
    return tensor.dtype if found is None else found
