"""Weights that stay in their files: memory-mapped, read where they are used, and let go of again."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from pdtrim_core.files.paths import PathLike

FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of the number formats that a dense checkpoint may have."""
LENGTH = struct.Struct("<Q")
"""The length of a file's header, with which it begins."""
CAN_BE_TOLD = hasattr(mmap.mmap, "madvise")
"""Whether the system takes advice on pages; where it does not, it finds out by itself, and later, which are not needed."""


class MappedWeights:
    """The tensors of safetensors files, which are in memory only where and as long as they are used.

    `tensors` has them by name. They lie where the file has them: nothing is copied, and what was let go of is read again from the
    file. So whoever writes to one of them has to expect that it is undone. `device` is where blocks run that are in the files.

    The maps are made here and not by safetensors, which gives no hold on its own: without one, no page can be let go of.
    """

    def __init__(self, files: Sequence[PathLike], device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.tensors: dict[str, Tensor] = {}
        self._maps: list[tuple[int, mmap.mmap]] = []
        for file in map(Path, files):
            with file.open("rb") as opened:
                # A private copy that nobody writes to; torch wants memory that it could write to.
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            self.tensors |= _tensors_in(mapped)
            self._maps.append((torch.frombuffer(mapped, dtype=torch.uint8).data_ptr(), mapped))

    def has(self, tensor: Tensor) -> bool:
        """Tell whether the numbers of a tensor are those in a file, and not a copy of them."""
        return self._place_of(tensor) is not None

    def let_go(self) -> None:
        """Free the memory that they take."""
        if CAN_BE_TOLD:
            for _, mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    def expect(self, tensors: Iterable[Tensor]) -> None:
        """Let the system read some tensors from their files while others are used."""
        for tensor in tensors if CAN_BE_TOLD else ():
            place = self._place_of(tensor)
            if place is not None and tensor.nbytes:
                mapped, offset = place
                # Advice is about whole pages.
                start = offset - offset % mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, start, offset + tensor.nbytes - start)

    def _place_of(self, tensor: Tensor) -> tuple[mmap.mmap, int] | None:
        if tensor.device.type != "cpu":
            return None
        at = tensor.data_ptr()
        return next(((mapped, at - begin) for begin, mapped in self._maps if begin <= at < begin + len(mapped)), None)


def _tensors_in(mapped: mmap.mmap) -> dict[str, Tensor]:
    """Return the tensors of a mapped file, whose header has been checked before."""
    (length,) = LENGTH.unpack_from(mapped)
    header = json.loads(mapped[LENGTH.size : LENGTH.size + length])
    header.pop("__metadata__", None)
    found = {}
    for name, told in header.items():
        (start, end), dtype = told["data_offsets"], FORMATS.get(told["dtype"])
        if dtype is None:
            continue  # no part of a model that can be opened: it would have been refused
        count = (end - start) // dtype.itemsize
        if count:
            offset = LENGTH.size + length + start
            found[name] = torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset).view(told["shape"])
        else:
            found[name] = torch.empty(told["shape"], dtype=dtype)
    return found


class BlocksOnDisk:
    """Keeps one block of a model in memory at a time, whose weights are mapped from files.

    Where the blocks run on an accelerator, what is beside them is brought there once and for all, and their weights for as long
    as they are the block that runs. `bytes_read` counts the bytes of blocks, and of a head that stays on the disk, that were
    brought into memory; a block that is run again before another one counts once. Rows of the embedding do not count.
    """

    def __init__(self, model: Any, blocks: Sequence[nn.Module], mapped: MappedWeights) -> None:
        self._mapped = mapped
        self._modules = blocks
        self._blocks = [list(block.parameters()) for block in blocks]
        self._brought = None if mapped.device.type == "cpu" else WeightsBrought(mapped.device)
        if self._brought is not None:
            _bring_what_is_beside(model, blocks, mapped.device)
        head: nn.Module | None = model.get_output_embeddings()
        self._head = [] if head is None else [weight for weight in head.parameters() if mapped.has(weight)]
        self._here: int | None = None
        self.bytes_read = 0

    @property
    def device(self) -> torch.device:
        """Where blocks run."""
        return self._mapped.device

    def go_to(self, block: int) -> None:
        """Let go of what was used last, unless it is this block; the number behind that of the last block stands for the head."""
        if block == self._here:
            return
        self.let_go()
        self._here = block
        if self._brought is not None and block < len(self._blocks):
            self._brought.keep(self._blocks[block])
        coming = self._blocks[block : block + 2]
        for weights in coming:
            self._mapped.expect(weights)
        self.bytes_read += sum(weight.nbytes for weight in (coming[0] if coming else self._head))

    def let_go(self) -> None:
        """Let go of all weights."""
        self._here = None
        self._mapped.let_go()
        if self._brought is not None:
            self._brought.let_go()

    def bringing(self) -> AbstractContextManager[object]:
        """Return the context in which weights that are in main memory are multiplied where blocks run."""
        return self._brought or nullcontext()

    @contextmanager
    def as_they_run(self) -> Iterator[None]:
        """Inside the context, follow the model's own forward from block to block."""

        def following(block: int) -> Callable[..., None]:
            return lambda _module, _args: self.go_to(block)

        hooks = [module.register_forward_pre_hook(following(block)) for block, module in enumerate(self._modules)]
        try:
            with self.bringing():
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self.let_go()


class WeightsBrought(TorchFunctionMode):
    """Inside the context, has weights that are in main memory multiplied on a device.

    A weight is known by itself, so that it does not matter which module has it: a block, what a plan left of one, or what was
    recovered. Those of the block that runs stay there until they are let go of; others are brought for each product, since
    there may be many modules in the place of one block.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        # A weight is held as long as its number stands for it.
        self._there: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept: set[int] = set()

    def keep(self, weights: Iterable[Tensor]) -> None:
        """Keep these weights there once they have been brought, and no others."""
        self._kept = {id(weight) for weight in weights}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, given = tree_map_only(nn.Parameter, self._brought, (args, dict(kwargs or {})))
        return func(*args, **given)

    def _brought(self, weight: Tensor) -> Tensor:
        if weight.device.type != "cpu":
            return weight
        if id(weight) not in self._kept or weight.requires_grad:
            return weight.to(self._device)
        if id(weight) not in self._there:
            self._there[id(weight)] = weight, weight.to(self._device)
        return self._there[id(weight)][1]

    def let_go(self) -> None:
        """Free the memory of the device that they take."""
        self._there.clear()
        self._kept = set()


def _bring_what_is_beside(model: Any, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Move to a device all parts of a model but the weights of its blocks; of these, the tables that they compute with."""
    within = {id(module) for block in blocks for module in block.modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    for module in model.modules():
        for name, table in module.named_buffers(recurse=False):
            setattr(module, name, table.to(device))
        if id(module) not in within:
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(weight.to(device), requires_grad=False))
    if tied:
        head.weight = embedding.weight
