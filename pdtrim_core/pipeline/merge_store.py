"""The store of merges: each is trained once, judged beside dropping a block, and found again.

Shape suffixes: B batch, T token, D hidden, N positions, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from pdtrim_core.api.distillation import Student, TeacherBatches
from pdtrim_core.api.plan_kinds import Distiller
from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError, PluginError, blame
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.files.atomic_files import alone
from pdtrim_core.host.sources import engine
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.several_devices import device_of
from pdtrim_core.model.weights import read_module, write_module
from pdtrim_core.plan.elements import Merge

SEQUENCE_TOKENS = 64
BATCH_SEQUENCES = 64
PREFIX_CACHE_BYTES = 2**29
"""Memory for the dense model's hidden states over the training tokens, which all pairs share."""


def training_items(sequences: Sequence[Sequence[int]]) -> list[Item]:
    """Return token sequences as items, which is what batches are laid out from; nothing of them is scored."""
    return [Item((tuple(s),), ((0,),), 0, (1,), f"training {number}") for number, s in enumerate(sequences)]


@dataclass(frozen=True)
class TrainedMerge:
    """How a merge came out: errors are mean squared differences of the hidden states behind the run from the dense model's.

    `untrained` is the error of the block that training started from, `trained` that of the merged block, and
    `drop_first` and `drop_second` those of dropping instead all but the last and all but the first block of the run, which of
    a pair is one of the two. `losses` is the mean loss of each epoch. `moved` tells whether any weight of the merged block, in
    the number format of the model, is another than training started from; records of older versions do not tell.
    """

    merge: Merge
    untrained: float
    trained: float
    drop_first: float
    drop_second: float
    losses: tuple[float, ...]
    moved: bool = True

    @property
    def worthwhile(self) -> bool:
        """Whether training made a block that is nearer to the run than keeping only its first and only its last block."""
        return self.moved and self.trained < min(self.drop_first, self.drop_second)


@dataclass(frozen=True)
class KeptMerges:
    """The folder that keeps merged blocks, and what of it may be used: all, or only what is in `fresh`, by keys.

    `note` takes what there is to say.
    """

    folder: Path
    fresh: set[str] | None = None
    note: Callable[[str], None] = lambda text: None

    def may_use(self, key: str) -> bool:
        """Whether a merge may be taken from the folder."""
        return self.fresh is None or key in self.fresh

    def made(self, key: str) -> None:
        """Take note that a merge in the folder was made, or looked at, just now."""
        if self.fresh is not None:
            self.fresh.add(key)


class MergeStore:
    """Trains merges, each once: a trained one is found again by its weights, data, options and blocks.

    `sequences` are tokens to train on; none of them may measure. `label` names the distiller in errors, and
    `code` is where its code comes from, with a hash.
    """

    def __init__(
        self,
        model: BlockModel,
        distiller: Distiller,
        sequences: Sequence[Sequence[int]],
        kept: KeptMerges,
        *,
        label: str,
        code: str = "",
    ) -> None:
        self._model = model
        self._code = code
        self._distiller = distiller
        self._kept = kept
        self._label = label
        self._items = training_items(sequences)
        self._prefix_cache = PrefixCache(
            model, ExecutionOptions(batch_tokens=SEQUENCE_TOKENS * BATCH_SEQUENCES, budget=PREFIX_CACHE_BYTES)
        )
        # Merges of models in other formats than float32 were once trained in those: they must not be found again.
        how = "" if self._dtype == torch.float32 else " trained in float32"
        self.digest = hashlib.sha256(f"{[tuple(s) for s in sequences]}{how}".encode()).hexdigest()
        """A hash of what merges are trained on, and in which number format where that is not the model's."""

    def merge_of(self, merge: Merge) -> Merge:
        """Return the merge as the distiller makes it: with its kind of K/V, and starting from the block that it needs."""
        first, second = merge.blocks[0], merge.blocks[-1]
        if self._distiller.kv == "frozen":
            if not self._model.layout.kv:
                raise PdtrimError(
                    f"{self._model.name}: this family computes K and V together with Q, so they cannot stay frozen: say "
                    'distiller.kv = "shadow"'
                )
            return Merge(first, second, "frozen")
        return Merge(merge.keep, merge.drop, "shadow")

    def trained(self, merge: Merge, epoch_done: Callable[[int], None] = lambda done: None) -> tuple[nn.Module, TrainedMerge]:
        """Return the merged block of a run and how it came out; train it if that was not done before.

        `epoch_done` is told how many epochs are done.
        """
        key = self._key(merge)
        path = self._kept.folder / f"{key}.safetensors"
        with alone(path, lambda: self._kept.note(f"merge {merge}: another process is training it, its result is waited for")):
            found = self._found(merge, path) if self._kept.may_use(key) else None
            if found is None:
                module = copy.deepcopy(self._model.blocks[merge.keep])
                found = module, self._train(merge, module, epoch_done)
                _write(path, *found, key=key)
        self._kept.made(key)
        return found

    def _found(self, merge: Merge, path: Path) -> tuple[nn.Module, TrainedMerge] | None:
        """Return a merge that was trained before; None where there is none, or none that can be used."""
        if not path.exists():
            return None
        module = copy.deepcopy(self._model.blocks[merge.keep])
        try:
            return module, _read(path, module, merge)
        except PdtrimError as error:
            self._kept.note(f"{error}: merge {merge} is trained again")
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        return None

    def copy(self, merge: Merge, path: Path) -> None:
        """Write the merged block of a run to a file of its own."""
        module, record = self.trained(merge)
        _write(path, module, record)

    def _key(self, merge: Merge) -> str:
        # When it is trained changes nothing about a merge.
        options = self._distiller.model_dump(mode="json", exclude={"train"})
        trains = [self._distiller.name, self._code, options, engine()]
        what = [self._model.exact_fingerprint, repr(self._model.layout), self.digest, trains, asdict(merge), str(self._dtype)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self._model.model.parameters()).dtype
        return dtype

    def _train(self, merge: Merge, module: nn.Module, epoch_done: Callable[[int], None]) -> TrainedMerge:
        """Train a copy of the block that a merge keeps, in place; it ends in the number formats that it came in."""
        start = self._model.blocks[merge.keep]
        batches = TeacherBatches(self._prefix_cache, self._items, merge)
        student = Student(self._model, merge, module)
        untrained = self._error(batches, student)
        if self._model.streams:
            module.to(self._model.device)
        module.float().requires_grad_(requires_grad=True)
        if merge.kv == "frozen":
            self._freeze(module)
        losses = self._distil(student, batches, epoch_done)
        module.requires_grad_(requires_grad=False).zero_grad()
        module.to(device_of(start))
        _back_to_formats_of(start, module)
        changed = self._changed(merge, module)
        first, second = merge.blocks[0], merge.blocks[-1]
        return TrainedMerge(
            merge=merge,
            untrained=untrained,
            trained=self._error(batches, student),
            drop_first=self._error(batches, Student(self._model, Merge(second, first), self._model.blocks[second])),
            drop_second=self._error(batches, Student(self._model, Merge(first, second), self._model.blocks[first])),
            losses=losses,
            moved=bool(changed),
        )

    def _distil(self, student: Student, batches: TeacherBatches, epoch_done: Callable[[int], None]) -> tuple[float, ...]:
        """Return the losses of the epochs, at least one."""
        losses: list[float] = []
        with torch.enable_grad(), blame(self._label):
            for loss in self._distiller.distil(student, batches):
                losses.append(float(loss))
                if not math.isfinite(losses[-1]):
                    raise PluginError(
                        f"{self._label}: the loss of the merge {student.merge} became {losses[-1]} in epoch {len(losses)}: "
                        "lower its lr"
                    )
                epoch_done(len(losses))
        if not losses:
            raise PluginError(f"{self._label} yielded no loss for the merge {student.merge}: it must yield one for each epoch")
        return tuple(losses)

    def _freeze(self, module: nn.Module) -> None:
        for name in self._model.layout.kv:
            module.get_submodule(name).requires_grad_(requires_grad=False)

    def _changed(self, merge: Merge, module: nn.Module) -> list[str]:
        """Return the names of the weights that training changed.

        Raises `PluginError` for one that is not finite, and for one that was to stay frozen.
        """
        start = dict(self._model.blocks[merge.keep].named_parameters())
        frozen = tuple(f"{name}." for name in self._model.layout.kv) if merge.kv == "frozen" else ()
        changed = []
        for name, weight in module.named_parameters():
            if not torch.isfinite(weight).all():
                raise PluginError(
                    f"{self._label}: the weight {name} of the merge {merge} is beyond what {_named(weight.dtype)} can hold after "
                    f"training: lower its lr{f', or say {_WIDER}' if weight.dtype == torch.float16 else ''}"
                )
            if not torch.equal(weight, start[name]):
                if name.startswith(frozen):
                    raise PluginError(
                        f"{self._label} changed the weight {name} of the merge {merge}, which is frozen: it may change "
                        "student.parameters() only"
                    )
                changed.append(name)
        return changed

    def _error(self, batches: TeacherBatches, student: Student) -> float:
        """Return the mean squared difference of a student's hidden states from the dense model's, in float32."""
        total = count = 0.0
        with torch.no_grad():
            for batch in batches:
                difference = (student(batch) - batch.after_BTD).float()
                total += float(difference.square().sum(dtype=torch.float64))
                count += difference.numel()
        if not math.isfinite(total):
            what = _WIDER if self._dtype == torch.float16 else "prune.merges = false"
            raise PdtrimError(
                f"{self._model.name}: hidden states of the merge {student.merge} are beyond what {_named(self._dtype)} can hold: "
                f"say {what}"
            )
        return total / count


_WIDER = 'dtype = "bfloat16" or "float32" in [model]'


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _back_to_formats_of(block: nn.Module, module: nn.Module) -> None:
    """Give the weights and buffers of a copy of a block the number formats that those of the block have."""
    for like, tensor in zip(_tensors(block), _tensors(module), strict=True):
        tensor.data = tensor.data.to(like.dtype)


def _tensors(module: nn.Module) -> tuple[torch.Tensor, ...]:
    return (*module.parameters(), *module.buffers())


def _write(path: Path, module: nn.Module, record: TrainedMerge, key: str = "") -> None:
    """Write a merged block with how it came out; in the store also its key, so that no file is taken for another's."""
    write_module(path, module, {**{name: value for name, value in asdict(record).items() if name != "merge"}, "key": key})


def _read(path: Path, module: nn.Module, merge: Merge) -> TrainedMerge:
    try:
        tensors, figures = read_module(path)
        if figures.pop("key") != path.stem:
            raise ValueError("it is another merge's")
        module.load_state_dict(tensors)
    except Exception as error:
        # safetensors and torch each have errors of their own for a damaged file.
        raise PdtrimError(f"the stored merge {path} is damaged ({error})") from error
    module.requires_grad_(requires_grad=False)
    return TrainedMerge(merge, **{**figures, "losses": tuple(figures["losses"])})
