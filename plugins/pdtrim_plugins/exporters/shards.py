"""Weights as safetensors files, a shard at a time.

safetensors' own writer needs all tensors of a file in their final form at once, and its error for a full disk is not an
OSError. The file format is simple: the length of the header, the header in JSON, the tensors one after the other.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, dtype

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
}
"""safetensors' names of torch's number formats."""
SINGLE, SHARD, INDEX = "model.safetensors", "model-{:05d}-of-{:05d}.safetensors", "model.safetensors.index.json"


class ShardWriter:
    """Takes tensors one by one and writes a file whenever they reach `shard_bytes`.

    Weights in floating point are stored as `number_format`, None to leave them as they are.
    """

    def __init__(self, folder: Path, shard_bytes: int, number_format: dtype | None = None) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._format = number_format
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0
        self._shards: list[list[str]] = []
        self.total_bytes = 0
        self.parameters = 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Add some tensors, by their names in the checkpoint."""
        for name, tensor in tensors.items():
            size = tensor.numel() * self._stored_as(tensor).itemsize
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
        write_tensors(self._part(len(self._shards)), self._waiting, self._format)
        self._shards.append(list(self._waiting))
        self._waiting, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}"

    def _stored_as(self, tensor: Tensor) -> dtype:
        return _stored_as(tensor, self._format)


def write_tensors(path: Path, tensors: dict[str, Tensor], number_format: dtype | None = None) -> None:
    """Write one safetensors file; no more than one tensor is copied at a time."""
    import torch  # noqa: PLC0415 - listings must not import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        stored_as = _stored_as(tensor, number_format)
        start, end = end, end + tensor.numel() * stored_as.itemsize
        kind = NAMES[str(stored_as).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # The tensors begin at a multiple of eight.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            numbers = tensor.detach().to(device="cpu", dtype=_stored_as(tensor, number_format)).contiguous()
            file.write(numbers.reshape(-1).view(torch.uint8).numpy().data)


def _stored_as(tensor: Tensor, number_format: dtype | None) -> dtype:
    return number_format if number_format is not None and tensor.is_floating_point() else tensor.dtype
