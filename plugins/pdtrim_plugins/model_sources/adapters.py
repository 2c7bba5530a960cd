"""Adapters of PEFT beside a checkpoint, or alone in a folder: refused, or merged into the weights that they belong to."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pdtrim_core.api import LoadedModel, PdtrimError, UnreadableError, is_streaming, read_json, shortened
from pdtrim_plugins.model_sources.opening import opening

CONFIG = "adapter_config.json"
"""By this file a folder is known to hold an adapter, to PEFT and to transformers."""
WEIGHTS = "adapter_model."


def has_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path, name: str) -> str:
    """Return the model that an adapter in a folder belongs to, as a path or hub id: the folder itself where it holds a model.

    A relative path counts from the current folder, or else from that of the adapter. Raises `PdtrimError` where none is named.
    """
    if (folder / "config.json").is_file():
        return str(folder)
    try:
        told = read_json(folder / CONFIG)
    except UnreadableError as error:
        raise PdtrimError(f"cannot open the model {name}: {error.reason} (in {CONFIG})") from error
    base = told.get("base_model_name_or_path") if isinstance(told, dict) else None
    if not isinstance(base, str) or not base:
        raise PdtrimError(f"cannot open the model {name}: its {CONFIG} names no base_model_name_or_path, the model it belongs to")
    beside = folder / base
    return str(beside) if not os.path.isdir(base) and beside.is_dir() else base  # noqa: PTH112 - a hub id is no path


def refuse_adapter(name: str, base: str, folder: Path) -> None:
    """Raise `PdtrimError` for an adapter that nobody asked to merge."""
    inside = base == str(folder)
    what = f"has an adapter of PEFT beside its weights ({CONFIG})" if inside else f"is an adapter of PEFT for {shortened(base)}"
    other = f"move {CONFIG} away to prune the model without it" if inside else "name that model to prune it without the adapter"
    raise PdtrimError(f"model folder {name} {what}: say [model] merge_adapter = true to prune both as one model, or {other}")


def check_merging(name: str, placement: Any) -> None:
    """Raise `PdtrimError` where an adapter cannot be merged, before anything is loaded."""
    if is_streaming(placement):
        raise PdtrimError(
            f"{name}: with placement = stream weights stay in their files, where no merged ones are: choose another placement"
        )
    if importlib.util.find_spec("peft") is None:
        raise PdtrimError(f"{name}: merge_adapter = true needs peft: pip install peft")


@contextmanager
def without_adapter(folder: Path) -> Iterator[str]:
    """Yield a folder with links to all files of another one but its adapter, which transformers would load by itself."""
    with tempfile.TemporaryDirectory() as plain:
        for file in folder.iterdir():
            if file.name != CONFIG and not file.name.startswith(WEIGHTS):
                (Path(plain) / file.name).symlink_to(file.absolute())
        yield plain


def merged(loaded: LoadedModel, folder: Path, name: str) -> LoadedModel:
    """Return a model with an adapter added to its weights, which are changed in place."""
    from peft import PeftModel  # noqa: PLC0415 - an optional package

    with opening(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how PEFT calls transformers
        adapted = PeftModel.from_pretrained(loaded.model, str(folder), is_trainable=False)
        if not hasattr(adapted, "merge_and_unload"):
            kind = next(iter(adapted.peft_config.values())).peft_type
            raise PdtrimError(
                f"cannot open the model {name}: an adapter of the sort {getattr(kind, 'value', kind)} is no change of weights, "
                "so that it cannot be merged"
            )
        model = adapted.merge_and_unload(safe_merge=True)
    return LoadedModel(model.eval().requires_grad_(requires_grad=False), loaded.tokenizer, name, dtypes=loaded.dtypes)
