"""A checkpoint folder with config, weights, tokenizer and model card, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdtrim_core.api import PdtrimError, reason_of, whole_folder
from pdtrim_plugins.exporters.configs import family_of, stock_of
from pdtrim_plugins.exporters.json_files import write_json
from pdtrim_plugins.exporters.older_readers import tell_older_readers
from pdtrim_plugins.exporters.shards import ShardWriter
from pdtrim_plugins.exporters.stages import StoredBlock

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import BlockModel

WRITTEN = "pdtrim-export.json"
"""The file of an export that lists all others: with anything beside them the folder is the user's, too."""
CARD = "README.md"
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "chat_template.json")
"""What lies beside the weights of a model that sees or hears, and makes its input."""


@dataclass(frozen=True)
class Storage:
    """How weights are stored: the number format ("auto" for those of the source), and the largest shard in bytes."""

    dtype: str
    shard_bytes: int

    def number_format(self, model: BlockModel, name: str = "") -> Any:
        """Return the number format of a tensor, or of most of them, as a torch dtype."""
        import torch  # noqa: PLC0415 - listings must not import torch

        # A shadow is the part of another block that makes its K/V.
        return model.stored_dtype(name.replace(".shadow.", ".")) if self.dtype == "auto" else getattr(torch, self.dtype)

    def told(self, model: BlockModel) -> str:
        """Return a sentence about the number format, and why it is that."""
        dtype, measured = _name_of(self.number_format(model)), _name_of(model.dtype)
        if self.dtype != "auto":
            why = "as the option dtype says"
        else:
            why = "as in the source" if model.dtypes else "the format that the model was in"
        others = sorted({other for pattern, other in model.dtypes.items() if pattern} - {dtype}) if self.dtype == "auto" else []
        some = f"; some tensors in {' and '.join(others)}, as there" if others else ""
        return f"weights in {dtype}, {why}{some}{f'; measured in {measured}' if measured != dtype else ''}"


def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def occupied(*paths: Path) -> list[str]:
    """Return what is wrong with folders in which there is something else than an earlier export."""
    found = [(path, _foreign(path)) for path in paths]
    return [f"{path} {what}: move it away, or choose another folder with --out" for path, what in found if what]


@contextmanager
def export_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` at the end; only an earlier export may be there.

    Raises `PdtrimError` for a folder with other things in it.
    """
    for problem in occupied(path):
        raise PdtrimError(problem)
    with whole_folder(path) as folder:
        yield folder
        write_json(folder / WRITTEN, {"format": 1, "files": _files(folder)})


def _foreign(path: Path) -> str:
    """Return what lies in the place of an export that no export wrote; nothing where it may be replaced."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return ""
    try:
        written = json.loads((path / WRITTEN).read_text(encoding="utf-8"))["files"]
        others = sorted(set(_files(path)) - {WRITTEN, *written})
    except (OSError, ValueError, KeyError, TypeError, PdtrimError):
        return "exists and is no earlier export"
    return f"has {others[0]}, which no export wrote" if others else ""


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir() or file.is_symlink())


def write_checkpoint(folder: Path, model: BlockModel, config: Any, stored: Sequence[StoredBlock], storage: Storage) -> None:
    """Write config, weights, generation config and tokenizer, and copy what makes the input of a model that sees or hears.

    With the family's own config, tensors get the names that its checkpoints have on disk. The head's own weights are left out
    where the config says that there is no head.
    """
    stock = config.model_type == family_of(model.model.config)
    head = getattr(config, "pdtrim", {}).get("head", True)
    number_format = storage.number_format(model)
    config.dtype = number_format
    config.architectures = [stock_of(model)[1].__name__] if stock else config.architectures
    (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    generation = getattr(model.model, "generation_config", None)
    if generation is not None:
        (folder / "generation_config.json").write_text(generation.to_json_string(), encoding="utf-8")
    _write_tokenizer(model.tokenizer, folder)
    tell_older_readers(folder)
    _copy_processors(model, folder)
    quantized: set[str] = set()
    writer = ShardWriter(
        folder,
        storage.shard_bytes,
        lambda name: None if name in quantized else storage.number_format(model, name),
        behind=model.let_go,
    )
    # The state dict refers to the model's tensors; nothing is copied yet.
    writer.add(_on_disk(model, outside(model, head=head), stock=stock))
    for block in stored:
        quantized |= block.quantized_in(model.layout.blocks)
        writer.add(_on_disk(model, block.tensors(model.layout.blocks), stock=stock))
    writer.finish()


def link_checkpoint(whole: Path, folder: Path) -> None:
    """Put the files of a checkpoint into another folder, but for those that each has of its own: hard links, or else copies."""
    for file in whole.iterdir():
        if file.name in (CARD, WRITTEN):
            continue
        if file.is_dir():
            shutil.copytree(file, folder / file.name)
            continue
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copy2(file, folder / file.name)


def outside(model: BlockModel, *, head: bool) -> dict[str, Tensor]:
    """Return the tensors outside the blocks, tied ones once."""
    tied: Mapping[str, str] = getattr(model.model, "all_tied_weights_keys", None) or {}
    ignored = set(getattr(model.model, "_keys_to_ignore_on_save", None) or ())
    output = model.model.get_output_embeddings()
    of_head = {id(parameter) for parameter in output.parameters()} if output is not None and not head else set()
    embedding = model.model.get_input_embeddings().weight
    left_out = {name for name, tensor in model.model.named_parameters() if id(tensor) in of_head and tensor is not embedding}
    tensors = model.model.state_dict()
    found = {}
    for name, tensor in tensors.items():
        same = name in tied and tied[name] in tensors and tensors[tied[name]].data_ptr() == tensor.data_ptr()
        if not (same or name in ignored or name in left_out or name.startswith(f"{model.layout.blocks}.")):
            found[name] = tensor.detach()
    return found


def _on_disk(model: BlockModel, tensors: dict[str, Tensor], *, stock: bool) -> dict[str, Tensor]:
    """Return tensors in the form that the family's checkpoints have, in which experts, for example, are separate tensors."""
    if not stock:
        return tensors
    from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415 - slow to import

    found: dict[str, Tensor] = revert_weight_conversion(model.model, tensors)
    return found


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    if not hasattr(tokenizer, "save_pretrained"):
        return
    try:
        tokenizer.save_pretrained(str(folder))
    except OSError:
        raise
    except Exception as error:
        # The tokenizers library raises its own error for a full disk.
        raise PdtrimError(f"cannot write the tokenizer to {folder}: {reason_of(error)}") from error


def _copy_processors(model: BlockModel, folder: Path) -> None:
    """Copy the files of `PROCESSORS` from beside the weights, where the language model is a part of the model."""
    if model.config is model.model.config or not model.files:
        return
    for name in PROCESSORS:
        file = model.files[0].parent / name
        if file.is_file() and not (folder / name).exists():
            shutil.copyfile(file, folder / name)
